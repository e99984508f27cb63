"""Several runs of one name as one: mean and spread, and the verdict on the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from image_classification.core.types import RunReport
from image_classification.reporting.compare.identity import (
    Identity,
    check_distinct,
    check_finished,
    check_same,
)
from image_classification.reporting.figures import ACCURACY, FIGURES, figure_of, order, split_batch
from image_classification.reporting.published.verdict import load_published
from image_classification.reporting.report import RecordedRun


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
        first: dict[str, Judged] = {}
        for entry in self.published:
            first.setdefault(entry.figure, entry)
        return list(first.values())


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
        figures[key] = spread(values, by_seed=figure_of(key).by_seed)
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
    entries: dict[tuple[str, str, float], list[tuple[RecordedRun, Mapping[str, Any]]]] = {}
    for run in runs:
        for entry in run.report.published:
            key = (entry["id"], entry["figure"], float(entry["published"]))
            entries.setdefault(key, []).append((run, entry))
    for same in entries.values():
        yield _judge_mean(same)


def _judge_mean(same: Sequence[tuple[RecordedRun, Mapping[str, Any]]]) -> Judged:
    first = same[0][1]
    accuracy = first["figure"] in ACCURACY
    values = [
        (run.seed, float(entry["measured"])) for run, entry in same if entry["measured"] is not None
    ]
    mean = spread(values, by_seed=accuracy) if values else None
    published = float(first["published"])
    row = _tolerance_and_spread(first["id"], first["figure"], published)
    printed = None if row is None else row[1]
    tolerance: float | None = None
    verdict = "not-comparable"
    if mean is None:
        why = "not measured"
    elif any(not entry["comparable"] for _, entry in same):
        why = _obstacles(same)
    elif row is None:
        why = "the published figure is not, or no longer, in this release"
    else:
        factor = tolerance_factor(mean.n, spread_is_printed=printed is not None)
        tolerance = row[0] * factor if accuracy else row[0]
        verdict, why = _verdict(first["figure"], mean, published, tolerance)
    return Judged(
        id=first["id"],
        figure=first["figure"],
        unit=first["unit"],
        published=published,
        spread=printed,
        measured=None if mean is None else mean.mean,
        n=0 if mean is None else mean.n,
        tolerance=tolerance,
        comparable=verdict != "not-comparable",
        why=why,
        verdict=verdict,
    )


def tolerance_factor(n: int, *, spread_is_printed: bool) -> float:
    """Return what a single run's tolerance in accuracy is multiplied by for a mean of ``n`` seeds.

    The tolerance of the difference of two means is two standard errors, s * sqrt(1/n + 1/m),
    with m published seeds. Sources do not say m. A printed spread takes at least two of them, and
    without one there may have been one only: these least m are taken, so that ``short`` and
    ``better`` are said where not even so few published seeds explain the difference. Never more
    than a single run is allowed.
    """
    published_seeds = 2 if spread_is_printed else 1
    return min(1.0, math.sqrt(1 / n + 1 / published_seeds))


def _verdict(figure: str, mean: Spread, published: float, tolerance: float) -> tuple[str, str]:
    # Rounded so that a difference that equals the tolerance in print is within it.
    difference = round(mean.mean - published, 6)
    if abs(difference) <= round(tolerance, 6):
        verdict = "reproduced"
    else:
        verdict = "better" if (difference < 0) == FIGURES[split_batch(figure)[0]].less else "short"
    if figure in ACCURACY:
        seeds = "1 seed" if mean.n == 1 else f"mean of {mean.n} seeds"
        return verdict, f"{difference:+.2f} points, tolerance {tolerance:.2f} ({seeds})"
    runs = "1 run" if mean.n == 1 else f"mean of {mean.n} runs"
    change = 100 * difference / published
    return verdict, f"{change:+.1f} %, tolerance {100 * tolerance / published:.0f} % ({runs})"


def _obstacles(same: Sequence[tuple[RecordedRun, Mapping[str, Any]]]) -> str:
    barred = [(run, entry) for run, entry in same if not entry["comparable"]]
    reasons = list(dict.fromkeys(entry["why"] for _, entry in barred))
    text = "; ".join(reasons)
    if len(barred) < len(same):
        text = f"{', '.join(run.label for run, _ in barred)}: {text}"
    return text


def _tolerance_and_spread(
    run_id: str, figure: str, value: float
) -> tuple[float, float | None] | None:
    """Return a published figure's tolerance for one run and its spread; None: no such figure."""
    for row in load_published():
        named = figure == row.figure or figure.startswith(f"{row.figure}_batch_")
        if row.id == run_id and named and math.isclose(row.value, value, rel_tol=1e-9):
            return row.tolerance, row.spread
    return None
