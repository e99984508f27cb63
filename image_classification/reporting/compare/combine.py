"""Combine runs of one name: mean and spread of every figure, and the verdict on the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from image_classification.core.units import number, rate
from image_classification.reporting.compare.identity import (
    Identity,
    check_distinct,
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
from image_classification.reporting.report import PublishedComparison, RunReport
from image_classification.reporting.run_folder import RecordedRun
from image_classification.reporting.table import Table, columns


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value), minimum and maximum of ``n`` values."""

    mean: float
    std: float | None
    n: int
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values), min(values), max(values))


@dataclass(frozen=True)
class Judged:
    """A published figure and the mean of the runs, in the figure's unit.

    spread: printed with the published value, or None. n: the number of seeds (accuracy) or runs in
    the mean. tolerance: None if not comparable.
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

    @property
    def ratio(self) -> float | None:
        """Measured divided by published."""
        if self.measured is None or self.published == 0:
            return None
        return self.measured / self.published


@dataclass(frozen=True)
class Group:
    """The given runs of one name and number of devices, sorted by seed and time."""

    identity: Identity
    runs: tuple[RecordedRun, ...]
    figures: Mapping[str, Spread]
    published: tuple[Judged, ...]
    warnings: tuple[str, ...]

    @property
    def report(self) -> RunReport:
        """The first run's report, for what all runs have in common."""
        return self.runs[0].report

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
        WorkspaceError: a report is given twice, a run ended early, or two runs of one name have
            different settings; the message says which.
    """
    check_distinct(runs)
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
    warnings = list(_repeated_seeds(runs)) if identity.mode == "convergence" else []
    figures = {}
    for key in sorted({key for run in runs for key in run.figures}, key=order):
        values = [(run.seed, run.figures[key]) for run in runs if key in run.figures]
        figures[key] = spread(values, by_seed=figure_of(key).varies_with_seed)
        if len(values) < len(runs):
            warnings.append(f"{key} is measured in {len(values)} of {len(runs)} runs")
    return Group(identity, tuple(runs), figures, tuple(_judged(runs)), tuple(warnings))


def spread(values: Iterable[tuple[int, float]], *, by_seed: bool) -> Spread:
    """Return the spread of (seed, value) pairs.

    by_seed: average the values of each seed first. Runs with the same seed are not independent
    samples of a figure that varies with the seed, and would make its spread too small.
    """
    pairs = list(values)
    if not by_seed:
        return Spread.of([value for _, value in pairs])
    seeds: dict[int, list[float]] = {}
    for seed, value in pairs:
        seeds.setdefault(seed, []).append(value)
    return Spread.of([statistics.fmean(repeats) for repeats in seeds.values()])


def _repeated_seeds(runs: Sequence[RecordedRun]) -> Iterable[str]:
    seeds: dict[int, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run.label)
    for seed, labels in seeds.items():
        if len(labels) > 1:
            yield (
                f"seed {seed} was run {len(labels)} times ({', '.join(labels)}): one seed in the "
                "accuracy, as their mean"
            )


def _judged(runs: Sequence[RecordedRun]) -> Iterable[Judged]:
    entries: dict[tuple[str, str, float], list[tuple[RecordedRun, PublishedComparison]]] = {}
    for run in runs:
        for entry in run.report.published:
            key = (entry.id, entry.figure, float(entry.published))
            entries.setdefault(key, []).append((run, entry))
    return map(_judge_mean, entries.values())


def _judge_mean(same: Sequence[tuple[RecordedRun, PublishedComparison]]) -> Judged:
    """Judge the mean of what runs measured against one published figure."""
    first = same[0][1]
    values = [
        (run.seed, float(entry.measured)) for run, entry in same if entry.measured is not None
    ]
    mean = spread(values, by_seed=first.figure in ACCURACY) if values else None
    measured, n = (None, 0) if mean is None else (mean.mean, mean.n)
    row = _published_row(first)
    verdict = judge(row, measured, _obstacles(same), mean_of=n)
    return Judged(
        id=first.id,
        figure=first.figure,
        unit=first.unit,
        published=float(first.published),
        spread=None if row is None else row.spread,
        measured=measured,
        n=n,
        tolerance=verdict.tolerance,
        comparable=verdict.comparable,
        why=verdict.why,
        verdict=verdict.verdict,
    )


def _obstacles(same: Sequence[tuple[RecordedRun, PublishedComparison]]) -> list[str]:
    """Return why some of the runs are not comparable, and which, if not all of them."""
    barred = [(run, entry) for run, entry in same if not entry.comparable]
    reasons = list(dict.fromkeys(entry.why for _, entry in barred))
    if barred and len(barred) < len(same):
        reasons[0] = f"{', '.join(run.label for run, _ in barred)}: {reasons[0]}"
    return reasons


def _published_row(entry: PublishedComparison) -> PublishedRow | None:
    """Return the published figure of an entry; None if this release does not have it."""
    for row in load_published():
        is_it = row.id == entry.id and with_batch(row.figure, row.batch) == entry.figure
        if is_it and math.isclose(row.value, entry.published, rel_tol=1e-9):
            return row
    return None


def figure_table(group: Group) -> Table:
    """Return every figure of the group except those of one batch size."""
    return Table(
        (
            *columns("figure", "unit"),
            *columns("mean", "± std", "min", "max", "n", numbers=range(5)),
        ),
        [
            (
                label_of(key),
                unit_text(key),
                plain_value(key, spread.mean),
                plain_spread(key, spread.std),
                plain_value(key, spread.least if spread.n > 1 else None),
                plain_value(key, spread.most if spread.n > 1 else None),
                str(spread.n),
            )
            for key, spread in group.figures.items()
            if split_batch(key)[1] is None
        ],
    )


def inference_table(group: Group) -> Table:
    """Return mean speed and latency of every batch size."""
    heads = ("batch", "images/s", "± std", *LATENCY_NAMES, "n")
    batches = {batch for key in group.figures if (batch := split_batch(key)[1]) is not None}
    rows = []
    for batch in sorted(batches):
        speed = group.figures.get(with_batch("inference_images_per_s", batch))
        latencies = (
            group.figures.get(with_batch(f"latency_ms_{name}", batch)) for name in LATENCY_NAMES
        )
        rows.append(
            (
                str(batch),
                rate(None if speed is None else speed.mean),
                number(None if speed is None else speed.std, 1),
                *(number(None if latency is None else latency.mean) for latency in latencies),
                "-" if speed is None else str(speed.n),
            )
        )
    return Table(columns(*heads, numbers=range(len(heads))), rows)
