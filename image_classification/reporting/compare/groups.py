"""Runs of one name: mean and spread of every figure, and the verdict on the mean."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from image_classification.core.errors import WorkspaceError
from image_classification.core.units import number, printable, rate
from image_classification.reporting.compare.identity import (
    Identity,
    check_finished,
    check_same,
    device_names,
)
from image_classification.reporting.figures import (
    ACCURACY,
    LATENCY_NAMES,
    figure_of,
    label_of,
    order,
    plain_spread,
    plain_value,
    split_batch,
    unit_text,
    with_batch,
)
from image_classification.reporting.published.load import PublishedRow, load_published
from image_classification.reporting.published.verdict import judge
from image_classification.reporting.report import PublishedComparison, RunReport, to_json
from image_classification.reporting.run_folder import RecordedRun
from image_classification.reporting.table import Table, columns


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value), minimum and maximum of ``n`` values."""

    mean: float
    std: float | None
    n: int
    min: float
    max: float


@dataclass(frozen=True)
class Judged:
    """A published figure and the mean of the runs, in the figure's unit.

    spread: printed with the published value, or None. n: the number of seeds (accuracy) or runs in
    the mean. tolerance: None if not comparable. ratio: measured divided by published.
    """

    id: str
    figure: str
    unit: str
    published: float
    spread: float | None
    measured: float | None
    n: int
    tolerance: float | None
    comparable: bool
    why: str
    verdict: str
    ratio: float | None


@dataclass(frozen=True)
class Group:
    """The given runs of one name and number of devices, sorted by seed and time."""

    identity: Identity
    runs: Sequence[RecordedRun]
    figures: Mapping[str, Spread]
    published: Sequence[Judged]
    warnings: Sequence[str]

    @property
    def report(self) -> RunReport:
        """The first run's report, for what all runs have in common."""
        return self.runs[0].report

    def mean(self, key: str) -> float | None:
        """Return the mean of a figure; None if no run measured it."""
        return self.figures[key].mean if key in self.figures else None

    @property
    def device_names(self) -> str:
        """The names of the devices, without their number."""
        return device_names(self.runs[0])

    @property
    def title(self) -> str:
        """The name and the number of runs."""
        count = len(self.runs)
        return f"{self.identity.text}, {count} {'run' if count == 1 else 'runs'}"

    @property
    def note(self) -> str:
        """The devices and the seeds in words."""
        seeds = ", ".join(str(run.seed) for run in self.runs)
        return f"{self.device_names}; {'seed' if len(self.runs) == 1 else 'seeds'} {seeds}"


def group_runs(runs: Sequence[RecordedRun], ignored: Collection[str] = ()) -> list[Group]:
    """Group runs by name and number of devices, in the order given.

    ignored: settings that may differ within a group.

    Raises:
        WorkspaceError: a report is given twice (also as a copy), a run ended early, or two runs
            of one name have different settings; the message says which.
    """
    seen: dict[str, RecordedRun] = {}
    for run in runs:
        content = json.dumps(to_json(run.report), sort_keys=True)
        if content in seen:
            raise WorkspaceError(
                f"{printable(str(seen[content].path))} and {printable(str(run.path))} are the same "
                "report: give each run once"
            )
        seen[content] = run
    members: dict[Identity, list[RecordedRun]] = {}
    for run in runs:
        check_finished(run)
        group = members.setdefault(Identity.of(run), [])
        if group:
            check_same(group[0], run, ignored, "combine them separately")
        group.append(run)
    return [_group(identity, group) for identity, group in members.items()]


def _group(identity: Identity, runs: list[RecordedRun]) -> Group:
    runs = sorted(runs, key=lambda run: (run.seed, run.ended_at))
    warnings = list(_warnings_of(runs))
    warnings += _repeated_seeds(runs) if identity.mode == "convergence" else []
    figures = {}
    for key in sorted({key for run in runs for key in run.figures}, key=order):
        samples = [(run.seed, run.figures[key]) for run in runs if key in run.figures]
        figures[key] = spread(samples, by_seed=figure_of(key).varies_with_seed)
        if len(samples) < len(runs):
            warnings.append(f"{key} is measured in {len(samples)} of {len(runs)} runs")
    entries: dict[tuple[str, str, float], list[tuple[RecordedRun, PublishedComparison]]] = {}
    for run in runs:
        for entry in run.report.published:
            published = (entry.id, entry.figure, float(entry.published))
            entries.setdefault(published, []).append((run, entry))
    return Group(
        identity, runs, figures, [_judge_mean(same) for same in entries.values()], warnings
    )


def _warnings_of(runs: Sequence[RecordedRun]) -> Iterable[str]:
    """Yield each warning of the runs once, with the runs that have it unless all do."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.report.warnings:
            labels.setdefault(warning, []).append(run.label)
    for warning, having in labels.items():
        where = "" if len(having) == len(runs) else f"{', '.join(having)}: "
        yield f"{where}{warning}"


def _repeated_seeds(runs: Sequence[RecordedRun]) -> Iterable[str]:
    labels: dict[int, list[str]] = {}
    for run in runs:
        labels.setdefault(run.seed, []).append(run.label)
    for seed, repeats in labels.items():
        if len(repeats) > 1:
            yield (
                f"seed {seed} was run {len(repeats)} times ({', '.join(repeats)}): one seed in the "
                "accuracy, as their mean"
            )


def spread(samples: Iterable[tuple[int, float]], *, by_seed: bool) -> Spread:
    """Return the spread of at least one (seed, value) sample.

    by_seed: average the values of each seed first. Runs with the same seed are not independent
    samples of a figure that varies with the seed, and would make its spread too small.
    """
    repeats: dict[int, list[float]] = {}
    for at, (seed, value) in enumerate(samples):
        repeats.setdefault(seed if by_seed else at, []).append(value)
    values = [statistics.fmean(same) for same in repeats.values()]
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values), min(values), max(values))


def _judge_mean(same: Sequence[tuple[RecordedRun, PublishedComparison]]) -> Judged:
    """Judge the mean of what runs measured against one published figure."""
    first = same[0][1]
    published = float(first.published)
    values = [(run.seed, float(e.measured)) for run, e in same if e.measured is not None]
    measured, n = None, 0
    if values:
        mean = spread(values, by_seed=first.figure in ACCURACY)
        measured, n = mean.mean, mean.n
    excluded = [(run.label, entry.why) for run, entry in same if not entry.comparable]
    obstacles = list(dict.fromkeys(why for _, why in excluded))
    if excluded and len(excluded) < len(same):
        obstacles[0] = f"{', '.join(label for label, _ in excluded)}: {obstacles[0]}"
    row = _published_row(first)
    verdict = judge(row, measured, obstacles, mean_of=n)
    return Judged(
        id=first.id,
        figure=first.figure,
        unit=first.unit,
        published=published,
        spread=None if row is None else row.spread,
        measured=measured,
        n=n,
        tolerance=verdict.tolerance,
        comparable=verdict.comparable,
        why=verdict.why,
        verdict=verdict.verdict,
        ratio=None if measured is None or not published else measured / published,
    )


def _published_row(entry: PublishedComparison) -> PublishedRow | None:
    """Return the published figure of an entry; None if this release does not have it."""
    for row in load_published():
        same = row.key == entry.figure and math.isclose(row.value, entry.published, rel_tol=1e-9)
        if same and row.id == entry.id:
            return row
    return None


def figure_table(group: Group) -> Table:
    """Return every figure of the group except those of one batch size."""
    heads = ("figure", "unit", "mean", "± std", "min", "max", "n")
    rows = [
        (
            label_of(key),
            unit_text(key),
            plain_value(key, spread.mean),
            plain_spread(key, spread.std),
            plain_value(key, spread.min if spread.n > 1 else None),
            plain_value(key, spread.max if spread.n > 1 else None),
            str(spread.n),
        )
        for key, spread in group.figures.items()
        if split_batch(key)[1] is None
    ]
    return Table(columns(*heads, numbers=range(2, 7)), rows)


def inference_table(group: Group) -> Table:
    """Return mean speed and latency of every batch size."""
    heads = ("batch", "images/s", "± std", *LATENCY_NAMES, "n")
    batches = {batch for key in group.figures if (batch := split_batch(key)[1]) is not None}
    rows = []
    for batch in sorted(batches):
        key = with_batch("inference_images_per_s", batch)
        speed = group.figures.get(key)
        latencies = [group.mean(with_batch(f"latency_ms_{name}", batch)) for name in LATENCY_NAMES]
        rows.append(
            (
                str(batch),
                rate(group.mean(key)),
                number(None if speed is None else speed.std, 1),
                *map(number, latencies),
                "-" if speed is None else str(speed.n),
            )
        )
    return Table(columns(*heads, numbers=range(len(heads))), rows)
