"""The verdict of a run, or of the mean of several, against the published figures.

Figures are judged only where a comparison means something. Accuracy holds for any machine of the
published kind of device, as long as data, precision, global batch, learning rate, mixup and number
of epochs are the published ones. Speed, latency, power and memory hold for the same devices, the
same number of them and the same batch. Everything else is ``not-comparable``; ``why`` names the
differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from image_classification.config.schema import RunConfig
from image_classification.core.types import DevicesFound
from image_classification.core.units import counted, number
from image_classification.reporting.figures import (
    ACCURACY,
    FIGURES,
    INFERENCE,
    label_of,
    measured,
    split_batch,
    value_text,
)
from image_classification.reporting.published.load import (
    SPREADS,
    PublishedRow,
    other_rows_for,
    rows_for,
)
from image_classification.reporting.report import (
    PublishedComparison,
    Results,
    RunReport,
    VerdictWord,
)
from image_classification.reporting.table import Cell, Column, Table, columns, marked

IMAGENET_VAL_IMAGES = 50_000
IMAGENET_CLASSES = 1000


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
        detail = f" ({'mean of ' * (mean_of > 1)}{counted(mean_of, what)})"
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
    return "below" if (difference > 0) == lower_is_better else "better"


def tolerance_factor(n: int, *, spread_is_printed: bool) -> float:
    """Return the factor on a single run's tolerance in accuracy for a mean over ``n`` seeds.

    The tolerance on the difference of two means is two standard errors, s * sqrt(1/n + 1/m) with
    m published seeds. Sources do not give m. A printed spread takes at least two seeds; without
    one there may have been only one. This minimum is assumed, so that ``below`` and ``better``
    are reported only where even so few published seeds do not explain the difference. The mean is
    never allowed more than a single run.
    """
    published_seeds = 2 if spread_is_printed else 1
    return min(1.0, math.sqrt(1 / n + 1 / published_seeds))


def compare(
    config: RunConfig, report: RunReport, devices: DevicesFound
) -> list[PublishedComparison]:
    """Compare a run with the published figures of its configuration, one entry per figure.

    report: its results, telemetry and environment are used. devices: those found on this node.
    The entries of `rows_for` come first, then other publications' values of the same figures.
    """
    values, software = measured(report), report.environment.torch
    entries = []
    for row in (*rows_for(config), *other_rows_for(config)):
        value = values.get(row.key)
        verdict = judge(row, value, list(_obstacles(row, config, report.results, devices)))
        why, version = verdict.why, row.run.source.speed_version
        if verdict.comparable and row.figure not in ACCURACY and software and version:
            why += f"; published with {version}, here torch {software}"
        note = row.note or (row.run.note if row.elsewhere is None else None)
        if value is not None and note:
            why += f" (the published figure: {note})"
        entry = PublishedComparison(
            id=row.id,
            figure=row.key,
            unit=FIGURES[row.figure].unit,
            published=row.value,
            measured=value,
            ratio=None if value is None else value / row.value,
            comparable=verdict.comparable,
            why=why,
            verdict=verdict.verdict,
        )
        entries.append(entry)
    return entries


def _obstacles(
    row: PublishedRow, config: RunConfig, results: Results, devices: DevicesFound
) -> Iterator[str]:
    """Yield what differs from the run that gave the published figure."""
    # Latency does not depend on which images it is measured with.
    data_obstacle = None if row.figure in INFERENCE else _data_obstacle(config)
    if data_obstacle is not None:
        yield data_obstacle
    shared = list(_shared_obstacles(row, config))
    yield from shared
    if row.figure not in ACCURACY:
        yield from _device_obstacles(row, config, devices)
    elif config.run.mode == "evaluate":
        yield "evaluation only: this run did not train the weights"
    else:
        imagenet = data_obstacle is None and not shared
        yield from _training_obstacles(row, config, results, imagenet=imagenet)


def _data_obstacle(config: RunConfig) -> str | None:
    if config.data.path == "synthetic" or config.data.backend == "synthetic":
        return "synthetic data, not ImageNet"
    return "demo data set, not ImageNet" if config.data.path == "demo" else None


def _shared_obstacles(row: PublishedRow, config: RunConfig) -> Iterator[str]:
    if config.model.name != row.model:
        yield f"model {config.model.name}, published for {row.model}"
    if config.model.num_classes != IMAGENET_CLASSES:
        yield f"{config.model.num_classes} classes, not {IMAGENET_CLASSES}"
    if config.names.precision != row.precision:
        yield f"precision {config.names.precision}, published in {row.precision}"
    if config.platform.device != row.hardware.device:
        yield f"ran on {config.platform.device}, published on {row.hardware.name}"
    if row.elsewhere is not None:
        yield f"the settings behind this figure of {row.elsewhere} are not recorded"


def _training_obstacles(
    row: PublishedRow, config: RunConfig, results: Results, *, imagenet: bool
) -> Iterator[str]:
    if config.model.pretrained_from_file is not None:
        yield "training started from pretrained weights"
    elif imagenet and results.validation.images not in (None, IMAGENET_VAL_IMAGES):
        images = results.validation.images
        yield f"validated on {images:,} images, not ImageNet's {IMAGENET_VAL_IMAGES:,}"
    if row.epochs is None and row.elsewhere is None:
        yield "the source does not say how many epochs"
    elif row.epochs not in (None, config.schedule.epochs):
        yield f"schedule of {counted(config.schedule.epochs, 'epoch')}, published {row.epochs}"
    epochs = results.train.epochs or 0
    if epochs < config.schedule.epochs:
        yield f"stopped after {epochs:g} of {config.schedule.epochs} epochs"
    for name, value, published in (
        ("global batch", config.batch.global_batch, row.global_batch),
        ("learning rate", config.optim.lr, row.recipe.lr),
        ("mixup", config.mixing.mixup, row.recipe.mixup),
    ):
        if published not in (None, value):
            yield f"{name} {value:g}, published {published:g}"
    for start in results.starts or ():
        if start.changes:
            yield f"settings changed at step {start.step} ({'; '.join(start.changes)})"


def _device_obstacles(row: PublishedRow, config: RunConfig, devices: DevicesFound) -> Iterator[str]:
    wanted = (row.hardware.device_name or "").casefold()
    others = sorted({name for name in devices.names if wanted not in name.casefold()})
    if devices.kind == row.hardware.device and (others or not devices.names):
        yield f"ran on {', '.join(others) or 'no device'}, published on {row.hardware.name}"
    if config.world_size != row.num_devices:
        published = "an unknown number" if row.num_devices is None else row.num_devices
        yield f"{config.world_size} devices, published with {published}"
    batch = config.batch.per_device_batch
    if row.figure not in INFERENCE and row.recipe.per_device_batch not in (None, batch):
        yield f"per-device batch {batch}, published {row.recipe.per_device_batch}"


@dataclass(frozen=True)
class Band:
    """A published figure with its tolerance, to draw beside a run's curve."""

    figure: str
    low: float
    high: float
    label: str


def band_of(row: PublishedRow) -> Band:
    """Return a published figure with the tolerance of a single run."""
    label = f"published {row.value:,} ± {row.tolerance:,.3g}"
    return Band(row.key, row.value - row.tolerance, row.value + row.tolerance, label)


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


def applies(figure: str, mode: str) -> bool:
    """Return whether a run of ``mode`` measures ``figure``."""
    if split_batch(figure)[0] in ACCURACY:
        return mode in ("convergence", "evaluate")
    return mode not in ("evaluate", "benchmark_data")


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
        *([Column("why", css="why")] if with_reasons else []),
    ]
    return Table(heads, rows, title="Against the published figures")
