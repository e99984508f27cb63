"""Pictures of results beside published ones: latency, accuracy over arithmetic, scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import median

import yaml

from image_classification.reporting.pictures.picture import (
    BAND,
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    LeftOut,
    Look,
    Panel,
    Picture,
    Series,
    run_looks,
)
from image_classification.reporting.pictures.source import RunData
from image_classification.reporting.published.load import PublishedRow, load_published

# images/s, latency in ms, images per batch
_LatencyPoint = tuple[float, float, int]
_Points = list[tuple[float, float]]


def latency(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot mean and p99 latency over throughput for each batch size, beside published means."""
    name, title = "latency", "Latency against throughput"
    series: list[Series] = []
    for run, look in zip(runs, run_looks(len(runs)), strict=True):
        label = run.label if len(runs) > 1 else "measured"
        if means := _measured_latency(run, "mean"):
            batches = tuple(str(batch) for *_, batch in means)
            series.append(_series(f"{label}, mean", means, look, names=batches))
        if means and (tails := _measured_latency(run, "p99")):
            dashed = Look(look.color, "--", look.marker, filled=False)
            series.append(_series(f"{label}, p99", tails, dashed))
    if not series:
        return LeftOut(name, title, "no inference was measured")
    kinds = {(run.text("name", "model"), run.text("name", "precision")) for run in runs}
    published = _published_latency(kinds, {run.text("name", "platform") for run in runs})
    for i, (label, points) in enumerate(published.items()):
        series.append(_series(f"published, {label}, mean", points, _published_look(i)))
    notes = ["Numbers beside the points are batch sizes."]
    if not published:
        names = ", ".join(sorted(f"{model} {precision}" for model, precision in kinds))
        notes.append(f"There is no published latency of {names}.")
    panel = Panel("latency of a batch, ms", tuple(series), scale="log")
    return Picture(name, title, "images/s", (panel,), tuple(notes))


def _series(
    label: str, points: Sequence[tuple[float, ...]], look: Look, names: tuple[str, ...] = ()
) -> Series:
    x, y, *_ = zip(*points, strict=True)
    return Series(label, x, y, look, names=names)


def _published_look(index: int) -> Look:
    return Look(INK, ":", "*ph8<>"[index % 6], filled=False, width=1.0)


def _measured_latency(run: RunData, quantile: str) -> list[_LatencyPoint]:
    points = []
    for row in (run.report and run.report.results.inference) or ():
        speed, ms = row.images_per_s, getattr(row.latency_ms, quantile)
        if speed and ms:
            points.append((speed, ms, row.batch))
    return sorted(points, key=lambda point: point[2])


def _published_latency(
    kinds: set[tuple[str, str]], platforms: set[str]
) -> dict[str, list[_LatencyPoint]]:
    """Return the newest tables of the (model, precision) ``kinds``, by label.

    Those of the runs' platforms, or of all platforms if these have none.
    """
    # figure -> id -> batch -> value
    values: dict[str, dict[str, dict[int, float]]] = {}
    # The first publication of a figure is the newest.
    newest: dict[tuple[str, str | None, str | None], PublishedRow] = {}
    for row in _of_configurations():
        if (row.model, row.precision) in kinds and row.batch is not None and row.requests is None:
            by_batch = values.setdefault(row.figure, {}).setdefault(row.id, {})
            by_batch[row.batch] = row.value
            if row.figure == "latency_ms_mean":
                newest.setdefault((row.model, row.precision, row.platform), row)
    here = [row for (*_, platform), row in newest.items() if platform in platforms]
    has_models = len({model for model, _ in kinds}) > 1
    has_precisions = len({precision for _, precision in kinds}) > 1
    tables: dict[str, list[_LatencyPoint]] = {}
    for row in here or newest.values():
        speeds = values.get("inference_images_per_s", {}).get(row.id, {})
        means = values["latency_ms_mean"][row.id]
        points = [(speeds[b], means[b], b) for b in sorted(speeds.keys() & means.keys())]
        parts = (has_models and row.model, has_precisions and row.precision, row.hardware.name)
        if points:
            tables.setdefault(" ".join(part for part in parts if part), points)
    return tables


def _of_configurations() -> Iterator[PublishedRow]:
    """Yield the published figures that belong to one of the named configurations."""
    return (row for row in load_published() if row.run.named is not None and row.elsewhere is None)


COSTS_NAME = "model_costs.yml"
_SHORT_EPOCHS = 100
# Markers that leave a published ring below them visible.
_RUN_LOOKS = [
    Look(color, "", marker)
    for color, marker in zip(
        (INK, PURPLE, ORANGE, SKY, INK, PURPLE, ORANGE), "XP*Dv<>", strict=True
    )
]
_LENGTHS = (
    (f"published, up to {_SHORT_EPOCHS} epochs", Look(BLUE, "", "o", filled=False)),
    (f"published, more than {_SHORT_EPOCHS} epochs", Look(VERMILION, "", "s", filled=False)),
    ("published, epochs not stated", Look(GREEN, "", "^", filled=False)),
)
_NOT_STATED = len(_LENGTHS) - 1
# Other points are on the right of these, so their names are written above.
_NAMES_ABOVE = frozenset({"resnext50-32x4d", "resnet101"})


@dataclass(frozen=True)
class Cost:
    """Cost of a model with 1000 classes.

    multiply_adds: side of the square image in pixels -> count for one image's forward pass.
    """

    num_parameters: int
    multiply_adds: dict[int, int]

    @property
    def area(self) -> float:
        """Area of the model's marker in square points."""
        return 2.6 * self.num_parameters / 1e6


@cache
def load_costs() -> dict[str, Cost]:
    """Read ``model_costs.yml``, which has every registered model."""
    package = resources.files(__package__)
    content = yaml.safe_load(package.joinpath(COSTS_NAME).read_text(encoding="utf-8"))
    return {name: Cost(**fields) for name, fields in content.items()}


def accuracy_cost(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot top-1 over multiply-adds: the runs among all published ImageNet results."""
    name, title = "accuracy_cost", "Accuracy against multiply-adds"
    measured: list[Series] = []
    reasons: dict[str, None] = {}
    for i, run in enumerate(runs):
        label = run.label if len(runs) > 1 else "this run"
        found = _measured_accuracy(run, label, _RUN_LOOKS[i % len(_RUN_LOOKS)])
        if isinstance(found, Series):
            measured.append(found)
        else:
            reasons[f"{run.label}: {found}" if len(runs) > 1 else found] = None
    if not measured:
        return LeftOut(name, title, "; ".join(reasons))
    panel = Panel("top-1, percent", (*_published_accuracy(), *measured))
    notes = (
        "Marker area is the number of parameters. Multiply-adds are for one image: at 224 x 224 "
        "pixels for published figures, at the run's own size for measured ones.",
        "A published marker is the median of all publications; its line spans their range.",
        *(f"{reason}." for reason in reasons),
    )
    return Picture(name, title, "multiply-adds per image, billions", (panel,), notes, tall=True)


def has_imagenet(run: RunData) -> bool:
    """Return whether the run's images are ImageNet's, as far as its configuration tells."""
    is_made = run.text("config", "data", "path") in ("demo", "synthetic")
    return not is_made and run.number("config", "model", "num_classes") == 1000


def _measured_accuracy(run: RunData, label: str, look: Look) -> Series | str:
    """Return the run's point, or why it has none."""
    top1 = run.number("results", "validation", "top1")
    model = run.text("name", "model")
    if top1 is None:
        return "no top-1 was measured"
    if not has_imagenet(run):
        return "its data set is not ImageNet"
    cost = load_costs().get(model)
    size_px = int(run.number("config", "data", "image_size") or 0)
    if cost is None or size_px not in cost.multiply_adds:
        return f"the multiply-adds of {model} at {size_px} pixels are unknown"
    billions = cost.multiply_adds[size_px] / 1e9
    return Series(f"{label}: {model}", (billions,), (top1,), look, (cost.area,))


def _published_accuracy() -> Iterator[Series]:
    """Yield a series for each range of epochs, and a line for each model's spread in it."""
    costs = load_costs()
    values: dict[tuple[str, int], list[float]] = {}
    longest: dict[str, int] = {}
    top1 = [row for row in load_published() if row.figure == "top1" and row.elsewhere is None]
    for model in costs:
        rows = [row for row in top1 if row.model == model]
        # Results of other recipes and frameworks only if no named configuration has one.
        rows = [row for row in rows if row.run.named] or rows
        for row in [row for row in rows if _length(row) != _NOT_STATED] or rows:
            values.setdefault((model, _length(row)), []).append(row.value)
            longest[model] = max(longest.get(model, 0), _length(row))
    for length, (label, look) in enumerate(_LENGTHS):
        models = [model for model in costs if (model, length) in values]
        if not models:
            continue
        x = tuple(costs[model].multiply_adds[224] / 1e9 for model in models)
        yield Series(
            label,
            x,
            tuple(median(values[model, length]) for model in models),
            look,
            tuple(costs[model].area for model in models),
            # Each model is named once, at its largest number of epochs.
            tuple(model if longest[model] == length else "" for model in models),
            _NAMES_ABOVE,
        )
        for at, model in zip(x, models, strict=True):
            low, high = min(values[model, length]), max(values[model, length])
            if low < high:
                yield Series("", (at, at), (low, high), Look(INK, width=0.8))


def _length(row: PublishedRow) -> int:
    return int(row.epochs > _SHORT_EPOCHS) if isinstance(row.epochs, int) else _NOT_STATED


@dataclass(frozen=True)
class _Kind:
    """Runs that differ only in their number of devices."""

    model: str
    precision: str
    device: str

    def __str__(self) -> str:
        return f"{self.model} {self.precision}, {self.device}"


def scaling(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Plot training images/s over the number of devices, beside ideal and published scaling."""
    name, title = "scaling", "Scaling over devices"
    by_kind: dict[_Kind, list[tuple[int, float, RunData]]] = {}
    for run in runs:
        speed = run.number("results", "train", "images_per_s")
        if speed is not None and run.num_devices:
            devices = run.report.environment.device_names if run.report else ()
            device = devices[0] if devices else run.text("name", "platform")
            kind = _Kind(run.text("name", "model"), run.text("name", "precision"), device)
            by_kind.setdefault(kind, []).append((run.num_devices, speed, run))
    kinds = {kind: found for kind, found in by_kind.items() if len({n for n, *_ in found}) > 1}
    if not kinds:
        why = "it needs training runs of one model, precision and device with different numbers"
        return LeftOut(name, title, f"{why} of devices")
    one = len(kinds) == 1
    series: list[Series] = []
    notes = [f"{kind}." for kind in kinds if one]
    published: dict[str, _Points] = {}
    for (kind, found), look in zip(kinds.items(), run_looks(len(kinds)), strict=True):
        points = sorted((float(n), speed) for n, speed, _ in found)
        series.append(_series("measured" if one else f"{kind}, measured", points, look))
        fewest, most = points[0][0], points[-1][0]
        speeds = [speed for n, speed in points if n == fewest]
        per_device = sum(speeds) / len(speeds) / fewest
        ideal = [(n, per_device * n) for n in (fewest, most)]
        series.append(_series("ideal" if one else "", ideal, Look(BAND, "--", width=1.2)))
        batches = sorted({run.text("config", "batch", "per_device") for _, _, run in found})
        if len(batches) > 1:
            listed = ", ".join(batches)
            notes.append(f"{kind}: images per device differ between the runs: {listed}.")
        platforms = {run.text("name", "platform") for _, _, run in found}
        for hardware, points in _published_scaling(kind, platforms).items():
            published[hardware if one else f"{kind}, {hardware}"] = points
    if not one:
        notes.append("Gray lines are ideal: proportional to the throughput at the fewest devices.")
    for i, (label, points) in enumerate(published.items()):
        series.append(_series(f"published, {label}", points, _published_look(i)))
    ticks = tuple(sorted({x for each in series for x in each.x}))
    panel = Panel("images/s", tuple(series), scale="log", x_ticks=ticks)
    return Picture(name, title, "devices", (panel,), tuple(notes))


def _published_scaling(kind: _Kind, platforms: set[str]) -> dict[str, _Points]:
    """Return the newest published points of each hardware that is the kind's or the platforms'."""
    rows: dict[str, list[PublishedRow]] = {}
    for row in _of_configurations():
        device = (row.hardware.device_name or "").casefold()
        if (
            row.figure == "train_images_per_s"
            and (row.model, row.precision) == (kind.model, kind.precision)
            and row.num_devices is not None
            and (row.platform in platforms or (device and device in kind.device.casefold()))
        ):
            rows.setdefault(row.id, []).append(row)
    tables: dict[str, _Points] = {}
    for found in rows.values():
        if len(found) > 1:
            hardware = found[-1].hardware.name or found[-1].platform or "?"
            points = sorted((float(row.num_devices or 0), row.value) for row in found)
            tables.setdefault(hardware, points)
    return tables
