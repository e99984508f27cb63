"""Pictures from a run's records: curves over epochs, over time, and the step time histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from statistics import fmean, median, quantiles

from image_classification.reporting.pictures.picture import (
    BLUE,
    GREEN,
    INK,
    VERMILION,
    Bars,
    LeftOut,
    Look,
    Panel,
    Picture,
    Series,
    Spans,
    VerticalLine,
    run_looks,
)
from image_classification.reporting.pictures.source import RunData, real

MAX_POINTS = 1200
"""More than the width of a picture in pixels: longer curves are averaged down to this many."""

Points = list[tuple[float, float]]

_TRAINING = Look(BLUE)
_AVERAGED = Look(GREEN, ":", "s")
_RESUMED = Look(INK, ":", width=0.9)
_FROM_ZERO = (0.0, None)


@dataclass(frozen=True)
class _Quantity:
    """A value of the records of one kind, with its label and its look in a picture of one run.

    With several runs, color and marker stand for the run and only the line for the quantity.
    """

    kind: str
    key: str
    label: str
    look: Look


def loss(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot training and validation loss, of the weights and of their moving average."""
    trained = {run.training_loss_label for run in runs}
    label = trained.pop() if len(trained) == 1 else "training loss"
    quantities = (
        _Quantity("step", "loss", label, _TRAINING),
        _Quantity("validation", "loss", "validation cross-entropy", Look(VERMILION, "--", "o")),
        _Quantity("validation_ema", "loss", "validation cross-entropy, EMA", _AVERAGED),
    )
    panel, clipped = _without_spikes(_panel(runs, "loss", quantities))
    why = "no loss was recorded"
    return _over_epochs(runs, "loss", "Loss", (panel,), quantities, why, clipped)


_MIN_TYPICAL_POINTS = 8


def _without_spikes(panel: Panel) -> tuple[Panel, str]:
    """Limit the axis to the typical values, and say what is above it.

    Typical are all but each curve's first value and the highest hundredth. The axis is limited only
    where the others would take up more than half of it.
    """
    typical = sorted(y for each in panel.series for y in each.y[1:])
    if len(typical) < _MIN_TYPICAL_POINTS:
        return panel, ""
    values = sorted(y for each in panel.series for y in each.y)
    low, high = values[0], typical[math.ceil(0.99 * len(typical)) - 1]
    above = [y for y in values if y > high + (high - low)]
    if high <= low or not above:
        return panel, ""
    top = values[-len(above) - 1]
    room = 0.05 * (top - low)
    limits = (low - room, min(top + room, (top + above[0]) / 2))
    note = f"Triangles mark values above the axis: {len(above)}, up to {max(above):,.4g}."
    return replace(panel, y_limits=limits, marks_clipped=True), note


def accuracy(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot top-1 and top-5 with the published values of comparable runs as bands."""
    top1, top5 = (
        (
            _Quantity("validation", key, "weights as trained", Look(VERMILION, "-", "o")),
            _Quantity("validation_ema", key, "EMA of the weights", _AVERAGED),
        )
        for key in ("top1", "top5")
    )
    panels = [_panel(runs, "top-1, percent", top1, band="top1")]
    if panels[0].bands and panels[0].series:
        panels.append(close_up(panels[0]))
    panels.append(_panel(runs, "top-5, percent", top5, band="top5"))
    drawn = tuple(panel for panel in panels if panel.series)
    title, why = "Validation accuracy", "no validation was recorded"
    return _over_epochs(runs, "accuracy", title, drawn, top1, why)


def learning_rate(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot the recorded learning rate."""
    quantities = (_Quantity("step", "lr", "learning rate", _TRAINING),)
    panel = replace(_panel(runs, "learning rate", quantities), y_limits=_FROM_ZERO)
    why = "no learning rate was recorded"
    return _over_epochs(runs, "learning_rate", "Learning rate", (panel,), quantities, why)


def throughput(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot the mean images/s of each epoch, with the published value as a band."""
    without_wait = Look(VERMILION, "--", "o")
    quantities = (
        _Quantity("epoch", "images_per_s", "data wait included", _TRAINING),
        _Quantity("epoch", "compute_images_per_s", "data wait excluded", without_wait),
    )
    panel = _panel(runs, "images/s", quantities, band="train_images_per_s")
    panel = replace(panel, y_limits=_FROM_ZERO)
    title, why = "Training throughput of each epoch", "no epoch was finished"
    return _over_epochs(runs, "throughput", title, (panel,), quantities, why)


def _panel(
    runs: Sequence[RunData], y_label: str, quantities: Sequence[_Quantity], band: str = ""
) -> Panel:
    series = []
    for run, run_look in zip(runs, run_looks(len(runs)), strict=True):
        for quantity in quantities:
            points, _ = thinned(run.over_epochs(quantity.kind, quantity.key))
            if not points:
                continue
            label, look = quantity.label, quantity.look
            if len(runs) > 1:
                label = f"{run.label}, {label}"
                look = replace(run_look, line=look.line, filled=look.line == "-")
            x, y = zip(*points, strict=True)
            series.append(Series(label, x, y, look))
    bands = tuple(dict.fromkeys(each for run in runs for each in run.bands(band)))
    lines: tuple[VerticalLine, ...] = ()
    # The lines of several runs would be indistinguishable.
    if len(runs) == 1 and (steps := runs[0].steps_per_epoch):
        lines = tuple(VerticalLine("resumed", at / steps, _RESUMED) for at in runs[0].resumed_at)
    return Panel(y_label, tuple(series), bands, lines=lines, x_from_zero=True)


def close_up(panel: Panel) -> Panel:
    """Return the panel around its last values and bands: beside whole curves, bands are narrow."""
    ends = [end for band in panel.bands for end in (band.low, band.high)]
    for each in panel.series:
        error = each.errors[-1] if each.errors else 0.0
        ends += [each.y[-1] - error, each.y[-1] + error]
    room = max(max(ends) - min(ends), 1.0) / 2
    limits = (min(ends) - room, max(ends) + room)
    return replace(panel, y_label="top-1, close-up", y_limits=limits)


def _over_epochs(
    runs: Sequence[RunData],
    name: str,
    title: str,
    panels: tuple[Panel, ...],
    quantities: Sequence[_Quantity],
    why: str,
    note: str = "",
) -> Picture | LeftOut:
    labels = {series.label for panel in panels for series in panel.series}
    if not labels:
        return LeftOut(name, title, why)
    notes = _thinning_note(
        [thinned(run.over_epochs(q.kind, q.key))[1] for run in runs for q in quantities]
    )
    notes += [note] if note else []
    legend = None
    if len(runs) > 1:
        looks: dict[str, Look] = {}
        used: dict[str, Look] = {}
        for run, look in zip(runs, run_looks(len(runs)), strict=True):
            drawn = [q for q in quantities if f"{run.label}, {q.label}" in labels]
            if drawn:
                looks[run.label] = look
            else:
                notes.append(f"{run.label}: {why}.")
            used |= {q.label: Look(INK, q.look.line, width=1.2) for q in drawn}
        legend = (*looks.items(), *(used.items() if len(used) > 1 else ()))
    steps = runs[0].steps_per_epoch if len({run.steps_per_epoch for run in runs}) == 1 else None
    parts = (panels, tuple(notes), legend)
    return Picture(name, title, "epochs done", *parts, steps_per_epoch=steps)


def thinned(points: Points) -> tuple[Points, int]:
    """Return about `MAX_POINTS` means of neighboring points, and the most points in one mean.

    A point with NaN in y is a gap: it is kept, and no mean spans it.
    """
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return points, 1
    means: Points = []
    for is_finite, group in groupby(points, key=lambda point: math.isfinite(point[1])):
        run = list(group)
        if not is_finite:
            means += run
            continue
        for start in range(0, len(run), size):
            x, y = zip(*run[start : start + size], strict=True)
            means.append((fmean(x), fmean(y)))
    return means, size


def _thinning_note(sizes: list[int]) -> list[str]:
    most = max(sizes)
    return [f"Long curves are drawn as means of up to {most} records."] if most > 1 else []


def over_time(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot images/s, and power where it was measured, over the time since the run began."""
    name, title = "over_time", "Throughput and power over time"
    curves = {
        "images/s": [_speed(run) for run in runs],
        "power, W": [_telemetry(run, "power_w") for run in runs],
    }
    times_s = [
        x for points in curves.values() for each in points for x, y in each if math.isfinite(y)
    ]
    if not times_s:
        return LeftOut(name, title, "no record of throughput or power has a time")
    units = ((600.0, 1.0, "s"), (3.0 * 3600, 60.0, "min"), (math.inf, 3600.0, "h"))
    _, unit_s, unit = next(entry for entry in units if max(times_s) < entry[0])
    starts = _restarts_s(runs[0]) if len(runs) == 1 else []
    lines = tuple(VerticalLine("restarted", at / unit_s, _RESUMED) for at in starts)
    spans = _interruptions(runs[0], unit_s) if len(runs) == 1 else ()
    looks = run_looks(len(runs)) if len(runs) > 1 else [_TRAINING]
    panels: dict[str, Panel] = {}
    sizes = [1]
    for y_label, all_points in curves.items():
        series = []
        for run, points, look in zip(runs, all_points, looks, strict=True):
            if any(math.isfinite(y) for _, y in points):
                kept, size = thinned(points)
                sizes.append(size)
                x, y = tuple(x / unit_s for x, _ in kept), tuple(y for _, y in kept)
                series.append(Series(run.label if len(runs) > 1 else "measured", x, y, look))
        if series:
            panels[y_label] = Panel(
                y_label,
                tuple(series),
                lines=lines,
                spans=spans,
                x_from_zero=True,
                y_limits=_FROM_ZERO,
            )
    notes = [] if "images/s" in panels else ["images/s over time: not measured."]
    notes += _thinning_note(sizes)
    if "power, W" in panels:
        notes.append("Power is the sum over the devices of rank 0's node.")
    else:
        title = "Throughput over time"
        notes.insert(0, "power: not measured.")
    x_label = f"time since the start, {unit}"
    return Picture(name, title, x_label, tuple(panels.values()), tuple(notes))


def _speed(run: RunData) -> Points:
    """Return images/s from telemetry; from the step records where these are more."""
    points = _telemetry(run, "images_per_s")
    values = ((t.unix_time_s, real(t.record.values.get("images_per_s"))) for t in run.of("step"))
    recorded = [(at - run.begin_s, y) for at, y in values if at is not None and y is not None]
    if sum(math.isfinite(y) for _, y in points) >= min(len(recorded), _ENOUGH_POINTS):
        return points
    return _with_gaps(run, recorded)


_ENOUGH_POINTS = 10


def _interruptions(run: RunData, unit_s: float) -> tuple[Spans, ...]:
    """Return when the run validated, and when it began to save."""
    validations: dict[int, tuple[float, float]] = {}
    saves: list[tuple[float, float]] = []
    for timed in run.records:
        kind, values, end_s = timed.record.kind, timed.record.values, timed.unix_time_s
        time_s = real(values.get("time_s"))
        if end_s is None or time_s is None:
            continue
        end = (end_s - run.begin_s) / unit_s
        if kind in ("validation", "validation_ema"):
            # Both are recorded when the second has ended.
            start, end = validations.get(timed.record.step, (end, end))
            validations[timed.record.step] = (start - time_s / unit_s, end)
        elif kind == "checkpoint":
            saves.append((end - time_s / unit_s, end))
    found = (
        Spans("validation", tuple(validations.values()), Look(GREEN)),
        Spans("save", tuple(saves), Look(VERMILION, "", "^" if len(saves) <= 60 else "|")),
    )
    return tuple(spans for spans in found if spans.ranges)


def _telemetry(run: RunData, key: str) -> Points:
    points = []
    for timed in run.of("telemetry"):
        values = timed.record.values
        end_s, value = real(values.get("unix_time_s")), real(values.get(key))
        if end_s is not None:
            middle_s = end_s - (real(values.get("span_s")) or 0.0) / 2 - run.begin_s
            points.append((max(0.0, middle_s), math.nan if value is None else value))
    return _with_gaps(run, points)


def _with_gaps(run: RunData, points: Points) -> Points:
    """Insert a gap at each restart, before which the run was stopped."""
    return sorted([*points, *((at, math.nan) for at in _restarts_s(run))] if points else points)


def _restarts_s(run: RunData) -> list[float]:
    times = [t.unix_time_s for t in run.of("start") if t.unix_time_s is not None]
    return [at - run.begin_s for at in times[1:]]


_MIN_STEP_TIMES = 3
_CUTOFF_MEDIANS = 3.0
"""Longer times are counted in the last bar; on the axis, they would squeeze all others into one."""


def step_time(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot the distribution of step times in ms.

    Of one run the single steps, if its report has them; else the recorded means.
    """
    name, title = "step_time", "Step time"
    if len(runs) == 1 and (single := _single_steps(runs[0])) is not None:
        return single
    too_few = f"fewer than {_MIN_STEP_TIMES} step times were recorded"
    times_ms = [(run, _step_times_ms(run)) for run in runs]
    shown = [(run, ms) for run, ms in times_ms if len(ms) >= _MIN_STEP_TIMES]
    if not shown:
        return LeftOut(name, title, too_few)
    edges = _edges(shown)
    all_ms = [value for _, ms in shown for value in ms]
    notes = []
    if beyond := sum(value > edges[-1] for value in all_ms):
        notes.append(_longer_note(max(all_ms), beyond))
    span = _record_span([run for run, _ in shown])
    bars = []
    lines: tuple[VerticalLine, ...] = ()
    for i, ((run, ms), look) in enumerate(zip(shown, run_looks(len(shown)), strict=True)):
        if len(shown) == 1:
            look, label = replace(look, width=0.8, marker=""), span
            cuts = quantiles(ms, n=100, method="inclusive")
            lines = _percentiles({f"p{q}": cuts[q - 1] for q in (50, 95, 99)}, edges[-1], notes)
        else:
            look, label = Look(look.color, ("-", "--", ":", "-.")[i % 4]), run.label
        bars.append(Bars(label, edges, _shares(ms, edges), look))
    if len(runs) > 1:
        notes += [f"{run.label}: {too_few}." for run, ms in times_ms if len(ms) < _MIN_STEP_TIMES]
    panel = Panel("records, percent", bars=tuple(bars), lines=lines, y_limits=_FROM_ZERO)
    return Picture(name, title, f"step time, ms ({span})", (panel,), tuple(notes))


def _single_steps(run: RunData) -> Picture | None:
    """Return the histogram of single steps with their percentiles, both from the report."""
    times = None if run.report is None else run.report.results.train.step_time_s
    steps = None if times is None else times.histogram
    if times is None or steps is None or not sum(steps.counts):
        return None
    bins, total = len(steps.counts), sum(steps.counts)
    width_ms = 1000 * (steps.high_s - steps.low_s) / bins
    edges = tuple(1000 * steps.low_s + width_ms * i for i in range(bins + 1))
    notes = [f"{total:,} single steps; the first steps are left out, as in the speed."]
    if steps.longest_s > steps.high_s * (1 + 1e-9):
        notes.append(_longer_note(1000 * steps.longest_s))
    values = {"p50": times.p50, "p95": times.p95, "p99": times.p99}
    known = {name: 1000 * value_s for name, value_s in values.items() if value_s is not None}
    lines = _percentiles(known, edges[-1], notes)
    if run.resumed_at:
        notes.append("The steps are those since the run was last resumed.")
    look = replace(run_looks(1)[0], width=0.8, marker="")
    bars = Bars("single steps", edges, tuple(100 * n / total for n in steps.counts), look)
    panel = Panel("steps, percent", bars=(bars,), lines=lines, y_limits=_FROM_ZERO)
    return Picture("step_time", "Step time", "time of a single step, ms", (panel,), tuple(notes))


def _longer_note(longest_ms: float, count: int | None = None) -> str:
    how_many = "" if count is None else f"{count}, "
    return f"The last bar includes longer times: {how_many}up to {longest_ms:,.1f} ms."


def _step_times_ms(run: RunData) -> list[float]:
    values = (real(timed.record.values.get("step_time_s")) for timed in run.of("step"))
    return [1000 * value for value in values if value is not None and value > 0]


def _record_span(runs: Sequence[RunData]) -> str:
    """Describe over how many steps a record's step time is averaged."""
    steps = [
        after.record.step - before.record.step
        for run in runs
        for before, after in pairwise(run.of("step"))
        if after.record.step > before.record.step
    ]
    typical = round(median(steps)) if steps else 1
    if typical == 1:
        return "single steps"
    # The last record of an epoch covers the remaining steps.
    about = "" if len(set(steps)) == 1 else "about "
    return f"means of {about}{typical} steps"


def _edges(shown: Sequence[tuple[RunData, list[float]]]) -> tuple[float, ...]:
    """Return the edges of equal bins over the step times in ms, at most up to the cutoff."""
    all_ms = [value for _, ms in shown for value in ms]
    low, high = min(all_ms), max(all_ms)
    high = min(high, _CUTOFF_MEDIANS * max(median(ms) for _, ms in shown))
    if high <= low:
        low, high = 0.95 * low, 1.05 * low
    bins = max(5, min(40, round(2 * len(all_ms) ** 0.5)))
    return tuple(low + (high - low) / bins * i for i in range(bins + 1))


def _shares(ms: Sequence[float], edges: Sequence[float]) -> tuple[float, ...]:
    """Return the percentage of ``ms`` in each bin; the last one includes longer times."""
    bins = len(edges) - 1
    counts = [0] * bins
    width = (edges[-1] - edges[0]) / bins
    for value in ms:
        counts[min(bins - 1, int((value - edges[0]) / width))] += 1
    return tuple(100 * count / len(ms) for count in counts)


def _percentiles(
    values_ms: Mapping[str, float], end_ms: float, notes: list[str]
) -> tuple[VerticalLine, ...]:
    """Return a line for each percentile; those beyond ``end_ms`` are noted instead."""
    lines = []
    for (name, value_ms), style in zip(values_ms.items(), ("-", "--", ":"), strict=False):
        label = f"{name}, {value_ms:,.1f} ms"
        if value_ms > end_ms:
            notes.append(f"{label}: outside the picture.")
        else:
            lines.append(VerticalLine(label, value_ms, Look(INK, style, width=1.3)))
    return tuple(lines)
