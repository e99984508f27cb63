"""How long steps took: a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from image_classification.reporting.pictures.picture import (
    Bars,
    LeftOut,
    Panel,
    Picture,
    Rule,
    take,
)
from image_classification.reporting.pictures.source import RunData, real
from image_classification.reporting.pictures.style import INK, RUNS, Look

_NAME, _TITLE = "step_time", "Step time"
_FEWEST_BINS, _MOST_BINS = 5, 40
_FEWEST = 3
_FAR = 3.0
"""Times beyond this many medians are counted in the last bar, which would else be the only one."""

_RULES = (("p50", "-"), ("p95", "--"), ("p99", ":"))


def step_time(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw the distribution of the recorded step times, in ms, of every run."""
    times = [_times_ms(run) for run in runs]
    shown = [(run, ms) for run, ms in zip(runs, times, strict=True) if len(ms) >= _FEWEST]
    if not shown:
        return LeftOut(_NAME, _TITLE, f"fewer than {_FEWEST} step times were recorded")
    everything = [value for _, ms in shown for value in ms]
    lowest, highest = min(everything), max(everything)
    limit = _FAR * max(median(ms) for _, ms in shown)
    tail_s = shown[0][0].number("results", "train", "step_time_s", "p99")
    reach = 1000 * tail_s if tail_s is not None and len(shown) == 1 else highest
    edges = _edges(lowest, min(max(highest, reach), limit), len(everything))
    bars: tuple[Bars, ...]
    rules: tuple[Rule, ...] = ()
    notes = []
    far = sum(value > edges[-1] for value in everything)
    if far:
        notes.append(f"The last bar also counts {far} beyond it, the longest {highest:,.1f} ms.")
    if len(shown) == 1:
        run, ms = shown[0]
        bars = (Bars("recorded step times", edges, _shares(ms, edges), _hatched(RUNS[0])),)
        rules = _percentiles(run, edges[-1], notes)
    else:
        looks = take(RUNS, len(shown))
        bars = tuple(
            Bars(run.label, edges, _shares(ms, edges), _line(look, at), outline=True)
            for at, ((run, ms), look) in enumerate(zip(shown, looks, strict=True))
        )
    notes += [
        f"{run.label}: fewer than {_FEWEST} step times were recorded."
        for run, ms in zip(runs, times, strict=True)
        if len(runs) > 1 and len(ms) < _FEWEST
    ]
    panel = Panel("records, percent", bars=bars, rules=rules, y_from_zero=True)
    x_label = f"step time, ms ({_what_a_record_is([run for run, _ in shown])})"
    return Picture(_NAME, _TITLE, x_label, (panel,), tuple(notes))


def _times_ms(run: RunData) -> list[float]:
    found = (real(timed.record.values.get("step_time_s")) for timed in run.of("step"))
    return [1000 * value for value in found if value is not None and value > 0]


def _what_a_record_is(runs: Sequence[RunData]) -> str:
    steps = [
        after.record.step - before.record.step
        for run in runs
        for before, after in pairwise(run.of("step"))
        if after.record.step > before.record.step
    ]
    each = round(median(steps)) if steps else 1
    if each == 1:
        return "single steps"
    # The last record of an epoch is of what is left of it.
    return f"means of {each} steps each" if len(set(steps)) == 1 else f"means of about {each} steps"


def _edges(lowest: float, highest: float, count: int) -> tuple[float, ...]:
    if highest <= lowest:
        lowest, highest = 0.95 * lowest, 1.05 * lowest
    bins = max(_FEWEST_BINS, min(_MOST_BINS, round(2 * count**0.5)))
    width = (highest - lowest) / bins
    return tuple(lowest + width * at for at in range(bins + 1))


def _shares(ms: Sequence[float], edges: Sequence[float]) -> tuple[float, ...]:
    bins = len(edges) - 1
    counts = [0] * bins
    width = (edges[-1] - edges[0]) / bins
    for value in ms:
        counts[max(0, min(bins - 1, int((value - edges[0]) / width)))] += 1
    return tuple(100 * count / len(ms) for count in counts)


def _percentiles(run: RunData, limit_ms: float, notes: list[str]) -> tuple[Rule, ...]:
    rules = []
    for name, line in _RULES:
        value_s = run.number("results", "train", "step_time_s", name)
        if value_s is None:
            continue
        label = f"{name} of single steps, {1000 * value_s:,.1f} ms"
        if 1000 * value_s > limit_ms:
            notes.append(f"{label}: beyond the picture.")
        else:
            rules.append(Rule(label, 1000 * value_s, Look(INK, line, width=1.3)))
    if rules and run.resumed_at:
        notes.append("The percentiles are of the steps since the run was last resumed.")
    return tuple(rules)


def _hatched(look: Look) -> Look:
    return Look(look.color, "-", width=0.8, hatch=look.hatch)


def _line(look: Look, at: int) -> Look:
    return Look(look.color, ("-", "--", ":", "-.")[at % 4], width=1.6)
