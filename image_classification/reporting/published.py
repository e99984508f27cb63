"""Published figures, and the verdict of a run against them.

A verdict needs a comparison that means something. Accuracy holds for any machine of the published
kind of device, as long as data, precision, global batch, learning rate, mixup and number of epochs
are the published ones. Throughput holds for the same devices, as many of them, with the same
per-device batch. Everything else is ``not-comparable``, and ``why`` says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

try:  # libyaml's loader is ten times as fast, but not every PyYAML is built with it.
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from image_classification.config.schema import RunConfig
from image_classification.core.types import DevicesFound

IMAGENET_VAL_IMAGES = 50_000
IMAGENET_CLASSES = 1000

SPREADS = 2.0
"""One run may differ from a published mean by this many of its printed spreads: a spread is about
one standard deviation over seeds, and a true reproduction stays within two of them 95 % of the
time."""

TOP1_TOLERANCE_POINTS = 0.2
"""Allowed difference in top-1 where no spread is printed: about two standard deviations over seeds
of ResNet-50 (0.05 to 0.16 points in the published tables)."""

THROUGHPUT_TOLERANCE = 0.05
"""Allowed relative difference in images/s; no published throughput prints a spread."""

UNITS = {"top1": "percent", "train_images_per_s": "images/s"}

# Other names of one machine; the key is the one the published rows use.
_SAME_PLATFORM = {"DGX1V-16G": "DGX1V"}


@dataclass(frozen=True)
class Hardware:
    """The machine behind a figure; ``device_name`` is part of the device's own name."""

    name: str
    device: str
    device_name: str


@dataclass(frozen=True)
class PublishedRow:
    """One published figure.

    value and spread: percent for ``top1``; images/s over ``num_devices`` devices for
    ``train_images_per_s``. None: the source does not say.
    """

    id: str
    model: str
    platform: str
    precision: str
    recipe: str | None
    figure: str
    unit: str
    value: float
    spread: float | None
    epochs: int | None
    global_batch: int | None
    per_device_batch: int | None
    hardware: Hardware
    num_devices: int
    source: str
    lr: float | None = None
    mixup: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if UNITS.get(self.figure) != self.unit:
            raise ValueError(f"{self.id}: {self.figure!r} is not published in {self.unit!r}")

    @property
    def tolerance(self) -> float:
        """Largest difference of a reproduction, in the row's unit."""
        if self.figure == "top1":
            return TOP1_TOLERANCE_POINTS if self.spread is None else SPREADS * self.spread
        return THROUGHPUT_TOLERANCE * self.value


@dataclass(frozen=True)
class Band:
    """A published figure with its tolerance, to draw beside a run's curve."""

    figure: str
    low: float
    high: float
    label: str


@cache
def load_published() -> tuple[PublishedRow, ...]:
    """Read every row of ``published.yml``, in the file's order.

    Raises:
        ValueError: two rows share id, figure and number of devices, or a unit is wrong.
    """
    text = resources.files(__package__).joinpath("published.yml").read_text(encoding="utf-8")
    content = yaml.load(text, Loader=SafeLoader)
    hardware = {name: Hardware(**fields) for name, fields in content["hardware"].items()}
    rows: dict[tuple[str, str, int], PublishedRow] = {}
    for fields in content["rows"]:
        row = PublishedRow(
            **fields
            | {
                "hardware": hardware[fields["hardware"]],
                "source": content["sources"][fields["source"]],
            }
        )
        key = (row.id, row.figure, row.num_devices)
        if key in rows:
            raise ValueError(f"published.yml: {key} appears twice")
        rows[key] = row
    return tuple(rows.values())


def rows_for(config: RunConfig) -> list[PublishedRow]:
    """Choose the rows a run is measured against.

    Those its configuration names as its sources; where these have none of a figure, or their
    number of epochs is not this run's, the newest row of the same model, platform and precision
    (and as many epochs, for accuracy). Published command lines turn the 250-epoch configuration
    into the 90-epoch run, so the number of epochs decides, not the recipe's name. Where a run has
    throughput rows for several numbers of devices, the one with as many as this run, else the one
    with the most. A figure that two documents print is taken once.
    """
    sourced = [row for row in load_published() if row.id in config.sources]
    fitting = {row.figure for row in sourced if _fits_length(row, config)}
    named = [row for row in load_published() if _matches_names(row, config)]
    newest = {row.figure: row.id for row in reversed(named) if row.figure not in fitting}
    candidates = [row for row in sourced if row.figure in fitting or row.figure not in newest]
    candidates += [row for row in named if newest.get(row.figure) == row.id]
    chosen: dict[tuple[str, str], PublishedRow] = {}
    for row in candidates:
        best = chosen.get((row.id, row.figure))
        if best is None or _nearness(row, config) > _nearness(best, config):
            chosen[row.id, row.figure] = row
    once = {(row.figure, row.value, row.spread): row for row in reversed(list(chosen.values()))}
    return list(reversed(once.values()))


def _fits_length(row: PublishedRow, config: RunConfig) -> bool:
    return row.figure != "top1" or row.epochs == config.schedule.epochs


def _matches_names(row: PublishedRow, config: RunConfig) -> bool:
    names = config.names
    return (
        row.model == names.model
        and row.platform == _SAME_PLATFORM.get(names.platform, names.platform)
        and row.precision == names.precision
        and _fits_length(row, config)
    )


def _nearness(row: PublishedRow, config: RunConfig) -> tuple[bool, int]:
    return (row.num_devices == config.world_size, row.num_devices)


def compare(
    config: RunConfig, results: Mapping[str, Any], devices: DevicesFound
) -> list[dict[str, Any]]:
    """Compare a run's results with the published figures of its configuration.

    results: the ``results`` of report.json. devices: those of this node, as found.

    Returns one entry a figure, as ``published`` in report.json: id, figure, unit, published,
    measured, ratio (measured over published), comparable, why, verdict.
    """
    return [_compare_row(row, config, results, devices) for row in rows_for(config)]


def _compare_row(
    row: PublishedRow, config: RunConfig, results: Mapping[str, Any], devices: DevicesFound
) -> dict[str, Any]:
    train: Mapping[str, Any] = results.get("train") or {}
    validation: Mapping[str, Any] = results.get("validation") or {}
    if row.figure == "top1":
        measured = validation.get("top1")
        obstacles = _accuracy_obstacles(row, config, train, validation)
        for start in results.get("starts") or ():
            if start["changes"]:
                changed = "; ".join(start["changes"])
                obstacles.append(f"settings changed at step {start['step']} ({changed})")
    else:
        measured = train.get("images_per_s")
        obstacles = _throughput_obstacles(row, config, devices)
    if measured is None:
        verdict, why = "not-comparable", "not measured"
    elif obstacles:
        verdict, why = "not-comparable", "; ".join(obstacles)
    else:
        verdict, why = _judge(row, measured)
    return {
        "id": row.id,
        "figure": row.figure,
        "unit": row.unit,
        "published": row.value,
        "measured": measured,
        "ratio": None if measured is None else measured / row.value,
        "comparable": verdict != "not-comparable",
        "why": f"{why} (the published figure: {row.note})" if row.note else why,
        "verdict": verdict,
    }


def _judge(row: PublishedRow, measured: float) -> tuple[str, str]:
    # Rounded so that a difference that equals the tolerance in print is within it.
    difference, tolerance = round(measured - row.value, 6), round(row.tolerance, 6)
    if abs(difference) <= tolerance:
        verdict = "reproduced"
    else:
        verdict = "better" if difference > 0 else "short"
    if row.figure != "top1":
        why = f"{100 * difference / row.value:+.1f} %, tolerance {100 * THROUGHPUT_TOLERANCE:.0f} %"
    elif row.spread is None:
        why = f"{difference:+.2f} points, tolerance {tolerance:.2f} (no spread printed)"
    else:
        why = (
            f"{difference:+.2f} points, tolerance {tolerance:.2f} "
            f"({SPREADS:.0f} x the printed spread of {row.spread:.2f})"
        )
    return verdict, why


def _shared_obstacles(row: PublishedRow, config: RunConfig) -> list[str]:
    obstacles = []
    if config.data.path == "synthetic" or config.data.backend == "synthetic":
        obstacles.append("synthetic data, not ImageNet")
    elif config.data.path == "demo":
        obstacles.append("demo data set, not ImageNet")
    if config.model.name != row.model:
        obstacles.append(f"model {config.model.name}, published for {row.model}")
    if config.model.num_classes != IMAGENET_CLASSES:
        obstacles.append(f"{config.model.num_classes} classes, not {IMAGENET_CLASSES}")
    if config.names.precision != row.precision:
        obstacles.append(f"precision {config.names.precision}, published in {row.precision}")
    if config.platform.device != row.hardware.device:
        obstacles.append(f"ran on {config.platform.device}, published on {row.hardware.name}")
    return obstacles


def _accuracy_obstacles(
    row: PublishedRow, config: RunConfig, train: Mapping[str, Any], validation: Mapping[str, Any]
) -> list[str]:
    obstacles = _shared_obstacles(row, config)
    if config.run.mode == "evaluate":
        obstacles.append("evaluation only: this run did not train the weights")
        return obstacles
    if config.model.pretrained_from_file is not None:
        obstacles.append("training started from pretrained weights")
    images = validation.get("images")
    if images is not None and images != IMAGENET_VAL_IMAGES and not obstacles:
        obstacles.append(f"validated on {images:,} images, not ImageNet's {IMAGENET_VAL_IMAGES:,}")
    if row.epochs is None:
        obstacles.append("the source does not say how many epochs")
    elif config.schedule.epochs != row.epochs:
        obstacles.append(f"schedule of {config.schedule.epochs} epochs, published {row.epochs}")
    epochs = train.get("epochs")
    if epochs is None or epochs < config.schedule.epochs:
        done = 0 if epochs is None else epochs
        obstacles.append(f"stopped after {done:g} of {config.schedule.epochs} epochs")
    if row.global_batch is not None and config.batch.global_batch != row.global_batch:
        obstacles.append(f"global batch {config.batch.global_batch}, published {row.global_batch}")
    if row.lr is not None and config.optim.lr != row.lr:
        obstacles.append(f"learning rate {config.optim.lr:g}, published {row.lr:g}")
    if row.mixup is not None and config.mixing.mixup != row.mixup:
        obstacles.append(f"mixup {config.mixing.mixup:g}, published {row.mixup:g}")
    return obstacles


def _throughput_obstacles(row: PublishedRow, config: RunConfig, devices: DevicesFound) -> list[str]:
    obstacles = _shared_obstacles(row, config)
    wanted = row.hardware.device_name.casefold()
    others = sorted({name for name in devices.names if wanted not in name.casefold()})
    if devices.kind == row.hardware.device and (others or not devices.names):
        found = ", ".join(others) or "no device"
        obstacles.append(f"ran on {found}, published on {row.hardware.name}")
    if config.world_size != row.num_devices:
        obstacles.append(f"{config.world_size} devices, published with {row.num_devices}")
    per_device = config.batch.per_device_batch
    if row.per_device_batch is not None and per_device != row.per_device_batch:
        obstacles.append(f"per-device batch {per_device}, published {row.per_device_batch}")
    return obstacles


def bands(config: RunConfig, comparisons: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Turn the comparable entries of `compare` into bands for the plots."""
    comparable = {(entry["id"], entry["figure"]) for entry in comparisons if entry["comparable"]}
    return [
        Band(
            figure=row.figure,
            low=row.value - row.tolerance,
            high=row.value + row.tolerance,
            label=f"published {row.value:,} ± {row.tolerance:,.3g}",
        )
        for row in rows_for(config)
        if (row.id, row.figure) in comparable
    ]
