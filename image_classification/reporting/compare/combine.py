"""Several runs of one name as one: mean and spread, and the verdict on the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from image_classification.reporting.compare.identity import (
    Identity,
    check_distinct,
    check_finished,
    check_same,
)
from image_classification.reporting.figures import ACCURACY, figure_of, order, with_batch
from image_classification.reporting.published.load import PublishedRow, load_published
from image_classification.reporting.published.verdict import judge, newest
from image_classification.reporting.report import PublishedComparison, RunReport
from image_classification.reporting.run_folder import RecordedRun


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over ``n`` values; std is None for one value."""

    mean: float
    std: float | None
    n: int
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of ``values``, of which there is at least one."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values), min(values), max(values))


@dataclass(frozen=True)
class Judged:
    """A published figure and the mean of the runs; the unit is the figure's.

    n: seeds (accuracy) or runs behind ``measured``. spread, tolerance: None where there is none.
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
        """Measured over published."""
        if self.measured is None or self.published == 0:
            return None
        return self.measured / self.published


@dataclass(frozen=True)
class Group:
    """All given runs of one name and number of devices, by seed and time."""

    identity: Identity
    runs: tuple[RecordedRun, ...]
    figures: Mapping[str, Spread]
    published: tuple[Judged, ...]
    warnings: tuple[str, ...]

    @property
    def first(self) -> RecordedRun:
        """A run to take what all have in common from."""
        return self.runs[0]

    @property
    def report(self) -> RunReport:
        """The first run's report."""
        return self.runs[0].report

    @property
    def newest_published(self) -> list[Judged]:
        """The first entry of each figure: publications come with the newest first."""
        return newest(self.published)


def group_runs(runs: Sequence[RecordedRun], ignored: Collection[str] = ()) -> list[Group]:
    """Put runs of one name and number of devices together, in the order given.

    ignored: settings that may differ within a group.

    Raises:
        WorkspaceError: a report given twice, a run that ended early, or two runs of one name with
            different settings; the message names what differs.
    """
    check_distinct(runs)
    members: dict[Identity, list[RecordedRun]] = {}
    for run in runs:
        check_finished(run)
        group = members.setdefault(Identity.of(run), [])
        if group:
            check_same(group[0], run, ignored, "combine each with its own")
        group.append(run)
    return [_group(identity, group) for identity, group in members.items()]


def _group(identity: Identity, runs: list[RecordedRun]) -> Group:
    runs = sorted(runs, key=lambda run: (run.seed, run.ended_at))
    keys = sorted({key for run in runs for key in run.figures}, key=order)
    warnings = list(_repeats(runs, identity))
    figures = {}
    for key in keys:
        values = [(run.seed, run.figures[key]) for run in runs if key in run.figures]
        figures[key] = spread(values, by_seed=figure_of(key).varies_with_seed)
        if len(values) < len(runs):
            warnings.append(f"{key} is measured in {len(values)} of {len(runs)} runs")
    return Group(identity, tuple(runs), figures, tuple(_judged(runs)), tuple(warnings))


def spread(values: Iterable[tuple[int, float]], *, by_seed: bool) -> Spread:
    """Return mean and spread of (seed, value) pairs.

    by_seed: the values of one seed count once, as their mean. Runs that share a seed are no
    independent samples of a figure that varies with it, and would make its spread too small.
    """
    pairs = list(values)
    if not by_seed:
        return Spread.of([value for _, value in pairs])
    seeds: dict[int, list[float]] = {}
    for seed, value in pairs:
        seeds.setdefault(seed, []).append(value)
    return Spread.of([statistics.fmean(own) for own in seeds.values()])


def _repeats(runs: Sequence[RecordedRun], identity: Identity) -> Iterable[str]:
    if identity.mode != "convergence":
        return
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
    for same in entries.values():
        yield _judge_mean(same)


def _judge_mean(same: Sequence[tuple[RecordedRun, PublishedComparison]]) -> Judged:
    first = same[0][1]
    values = [
        (run.seed, float(entry.measured)) for run, entry in same if entry.measured is not None
    ]
    mean = spread(values, by_seed=first.figure in ACCURACY) if values else None
    row = _row(first)
    verdict = judge(
        row,
        None if mean is None else mean.mean,
        _obstacles(same),
        mean_of=0 if mean is None else mean.n,
    )
    return Judged(
        id=first.id,
        figure=first.figure,
        unit=first.unit,
        published=float(first.published),
        spread=None if row is None else row.spread,
        measured=None if mean is None else mean.mean,
        n=0 if mean is None else mean.n,
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


def _row(entry: PublishedComparison) -> PublishedRow | None:
    """Return the published figure of an entry; None if this release does not have it."""
    for row in load_published():
        if (row.id, with_batch(row.figure, row.batch)) == (
            entry.id,
            entry.figure,
        ) and math.isclose(row.value, entry.published, rel_tol=1e-9):
            return row
    return None
