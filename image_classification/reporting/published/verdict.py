"""The verdict of a run, or of the mean of several, against the published figures.

Figures are judged only where a comparison means something. Accuracy holds for any machine of the
published kind of device, as long as data, precision, global batch, learning rate, mixup and number
of epochs are the published ones. Speed, latency, power and memory hold for the same devices, the
same number of them and the same batch. Everything else is ``not-comparable``; ``why`` says what
differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from image_classification.config.schema import RunConfig
from image_classification.core.types import DevicesFound
from image_classification.core.units import number
from image_classification.reporting.figures import (
    ACCURACY,
    FIGURES,
    label_of,
    measured,
    value_text,
    with_batch,
)
from image_classification.reporting.published.comparability import obstacles_of
from image_classification.reporting.published.load import SPREADS, PublishedRow
from image_classification.reporting.published.match import other_rows_for, rows_for
from image_classification.reporting.report import PublishedComparison, RunReport, VerdictWord
from image_classification.reporting.table import Cell, Column, Table, columns, marked


@dataclass(frozen=True)
class Verdict:
    """How a measured value compares. tolerance: in the figure's unit; None if not judged."""

    verdict: VerdictWord
    why: str
    tolerance: float | None = None

    @property
    def comparable(self) -> bool:
        """Whether the measured value could be judged."""
        return self.verdict != "not-comparable"


def judge(
    row: PublishedRow | None,
    value: float | None,
    obstacles: Sequence[str] = (),
    *,
    mean_of: int | None = None,
) -> Verdict:
    """Judge a measured value against a published one.

    row: None if the published figure is not in this release. value: in the row's unit, None if not
    measured. obstacles: what prevents the comparison. mean_of: the number of seeds (accuracy) or
    runs that ``value`` is the mean of; None for a single run, whose tolerance is explained.
    """
    if value is None:
        return Verdict("not-comparable", "not measured")
    if obstacles:
        return Verdict("not-comparable", "; ".join(obstacles))
    if row is None:
        return Verdict("not-comparable", "this release does not have the published figure")
    tolerance = row.tolerance
    accuracy = row.figure in ACCURACY
    if accuracy and mean_of is not None:
        tolerance *= tolerance_factor(mean_of, spread_is_printed=row.spread is not None)
    difference = value - row.value
    word = grade(difference, tolerance, FIGURES[row.figure].lower_is_better)
    detail = ""
    if mean_of is not None:
        what = "seed" if accuracy else "run"
        detail = f" (1 {what})" if mean_of == 1 else f" (mean of {mean_of} {what}s)"
    elif accuracy and row.spread is None:
        detail = " (no spread printed)"
    elif accuracy:
        detail = f" ({SPREADS:.0f} x the printed spread of {row.spread:.2f})"
    if accuracy:
        why = f"{round(difference, 6):+.2f} points, tolerance {tolerance:.2f}{detail}"
    else:
        change, allowed = 100 * round(difference, 6) / row.value, 100 * tolerance / row.value
        why = f"{change:+.1f} %, tolerance {allowed:.0f} %{detail}"
    return Verdict(word, why, tolerance)


def grade(difference: float, tolerance: float, lower_is_better: bool = False) -> VerdictWord:
    """Return the verdict on a difference, measured minus published, within ``tolerance``."""
    # Rounded so that a difference that equals the tolerance in print is within it.
    if abs(round(difference, 6)) <= round(tolerance, 6):
        return "reproduced"
    return "short" if (difference > 0) == lower_is_better else "better"


def tolerance_factor(n: int, *, spread_is_printed: bool) -> float:
    """Return the factor on a single run's tolerance in accuracy for a mean over ``n`` seeds.

    The tolerance on the difference of two means is two standard errors, s * sqrt(1/n + 1/m) with
    m published seeds. Sources do not give m. A printed spread takes at least two seeds; without
    one there may have been only one. This minimum is assumed, so that ``short`` and ``better``
    are reported only where even so few published seeds do not explain the difference. The mean is
    never allowed more than a single run.
    """
    published_seeds = 2 if spread_is_printed else 1
    return min(1.0, math.sqrt(1 / n + 1 / published_seeds))


def compare(
    config: RunConfig, report: RunReport, devices: DevicesFound
) -> list[PublishedComparison]:
    """Compare a run with the published figures of its configuration.

    report: its results, telemetry and environment are used. devices: those found on this node.

    Returns one entry per figure: those of `rows_for` come first, then other publications' values
    of the same figures.
    """
    values = measured(report)
    return [
        _compare_row(row, config, report, devices, values)
        for row in (*rows_for(config), *other_rows_for(config))
    ]


def _compare_row(
    row: PublishedRow,
    config: RunConfig,
    report: RunReport,
    devices: DevicesFound,
    values: Mapping[str, float],
) -> PublishedComparison:
    key = with_batch(row.figure, row.batch)
    value = values.get(key)
    verdict = judge(row, value, obstacles_of(row, config, report.results, devices))
    why = verdict.why
    software, version = report.environment.torch, row.run.source.speed_version
    if verdict.comparable and row.figure not in ACCURACY and software and version:
        why += f"; published with {version}, here torch {software}"
    note = row.note or (row.run.note if row.elsewhere is None else None)
    if value is not None and note:
        why += f" (the published figure: {note})"
    return PublishedComparison(
        id=row.id,
        figure=key,
        unit=row.unit,
        published=row.value,
        measured=value,
        ratio=None if value is None else value / row.value,
        comparable=verdict.comparable,
        why=why,
        verdict=verdict.verdict,
    )


@dataclass(frozen=True)
class Band:
    """A published figure with its tolerance, to draw beside a run's curve."""

    figure: str
    low: float
    high: float
    label: str


def band_of(row: PublishedRow) -> Band:
    """Return a published figure with the tolerance of a single run."""
    return Band(
        with_batch(row.figure, row.batch),
        row.value - row.tolerance,
        row.value + row.tolerance,
        f"published {row.value:,} ± {row.tolerance:,.3g}",
    )


class _Judged(Protocol):
    """A published figure and what was measured, in the figure's unit."""

    @property
    def id(self) -> str: ...
    @property
    def figure(self) -> str: ...
    @property
    def published(self) -> float: ...
    @property
    def spread(self) -> float | None: ...
    @property
    def measured(self) -> float | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def verdict(self) -> str: ...
    @property
    def why(self) -> str: ...


Entry = TypeVar("Entry", bound=_Judged)


def newest(entries: Iterable[Entry]) -> list[Entry]:
    """Return the first entry of each figure: that of the newest publication."""
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.figure, entry)
    return list(first.values())


def published_table(entries: Iterable[_Judged], *, with_reasons: bool = False) -> Table:
    """Return published and measured values. with_reasons: with the id and reason of each too."""
    rows: list[list[Cell | str]] = []
    for entry in entries:
        spread = "" if entry.spread is None else f" ± {number(entry.spread)}"
        row: list[Cell | str] = [
            Cell(label_of(entry.figure), detail=entry.id if with_reasons else ""),
            value_text(entry.figure, entry.published) + spread,
            value_text(entry.figure, entry.measured),
            number(entry.ratio, 3),
            marked(entry.verdict),
        ]
        rows.append([*row, entry.why] if with_reasons else row)
    heads = [
        Column("figure", wrap=False, css="figure"),
        *columns("published", "measured", "ratio", numbers=range(3)),
        Column("verdict", wrap=False),
    ]
    return Table(
        [*heads, Column("why", css="why")] if with_reasons else heads,
        rows,
        title="Against the published figures",
    )
