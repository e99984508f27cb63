"""Read ``published.yml``, and choose the published figures that a run is compared with.

The file is read once per process, when figures are first needed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from image_classification.config.schema import RunConfig
from image_classification.reporting.figures import (
    ACCURACY,
    FIGURES,
    INFERENCE,
    TRAINING,
    with_batch,
)

SPREADS = 2.0
"""Printed spreads by which one run may differ from a published mean. A spread is about one standard
deviation over seeds; a true reproduction is within two of them 95 % of the time."""

TOP1_TOLERANCE_POINTS = 0.2
"""Allowed difference in top-1 and top-5 without a printed spread: about two standard deviations
over seeds of ResNet-50 (0.05 to 0.16 points in the published tables)."""

THROUGHPUT_TOLERANCE = 0.05
"""Allowed relative difference of all other figures; no published speed has a printed spread."""

PERCENTILE_TOLERANCE = 0.10
"""Allowed relative difference of latency's upper percentiles, which depend on a few slow passes."""

Kind = Literal["convergence", "throughput", "inference", "recipe-only"]


@dataclass(frozen=True)
class Hardware:
    """The devices behind a figure.

    name: None if the source does not say. device: ``cuda``, ``hpu``; device_name: part of the name
    that the device reports. Both are None for devices that no configuration runs on.
    """

    name: str | None = None
    device: str | None = None
    device_name: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a figure is printed. version: of the container or release it was measured with."""

    name: str
    path: str | None = None
    version: str | None = None
    date: str | None = None

    @property
    def speed_version(self) -> str | None:
        """The version that speeds were measured with, if accuracy was measured with another."""
        return self.version and self.version.rpartition("throughput ")[2]

    def __str__(self) -> str:
        detail = ", ".join(part for part in (self.version, self.date) if part)
        text = f"{self.name}, {self.path}" if self.path else self.name
        return f"{text} ({detail})" if detail else text


@dataclass(frozen=True)
class RunName:
    """The names of a run in ``configs.yml``; recipe None: the default."""

    model: str
    platform: str
    precision: str
    recipe: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters as published, None if not stated.

    epochs: a range as text (``33-37``) for runs to a target accuracy. per_device_batch,
    global_batch: in images. lr: the peak. mixup: alpha.
    """

    epochs: int | str | None = None
    per_device_batch: int | None = None
    global_batch: int | None = None
    lr: float | None = None
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    optimizer: str | None = None


@dataclass(frozen=True)
class PublishedRun:
    """One run of one publication.

    model, platform, precision: in the source's words. named: the configuration that reproduces it,
    or None with the reason why_not. differs: setting -> why that configuration has another value.
    """

    id: str
    model: str
    kind: Kind
    hardware: Hardware
    source: Source
    recipe: Recipe
    platform: str | None = None
    precision: str | None = None
    num_devices: int | None = None
    named: RunName | None = None
    why_not: str | None = None
    differs: Mapping[str, str] = field(default_factory=dict, hash=False)
    note: str | None = None


@dataclass(frozen=True)
class PublishedRow:
    """One published figure of a run.

    value, spread: in ``unit``; spread is None if none is printed. batch: of inference, in images.
    requests: concurrent ones, of an inference server. printed: the source's own words, if
    ``value`` was derived from them. over: the precision that a speed-up is relative to. elsewhere:
    the document of a figure that is not in the run's own source; its hyperparameters are unknown.
    """

    run: PublishedRun
    figure: str
    value: float
    num_devices: int | None
    spread: float | None = None
    batch: int | None = None
    requests: int | None = None
    printed: str | None = None
    over: str | None = None
    elsewhere: str | None = None
    same_as: str | None = None
    epochs_stated: bool = True
    note: str | None = None

    @property
    def id(self) -> str:
        """The run's id, with the document in parentheses if that is not the run's own source."""
        return self.run.id if self.elsewhere is None else f"{self.run.id} ({self.elsewhere})"

    @property
    def model(self) -> str:
        """The model's name in configs.yml, else in the source."""
        return self.run.named.model if self.run.named else self.run.model

    @property
    def platform(self) -> str | None:
        """The platform's name in configs.yml, else in the source."""
        return self.run.named.platform if self.run.named else self.run.platform

    @property
    def precision(self) -> str | None:
        """The precision's name in configs.yml, else in the source."""
        return self.run.named.precision if self.run.named else self.run.precision

    @property
    def key(self) -> str:
        """The figure's key, with the batch size of inference."""
        return with_batch(self.figure, self.batch)

    @property
    def hardware(self) -> Hardware:
        """The devices it was measured on."""
        return self.run.hardware

    @property
    def recipe(self) -> Recipe:
        """The known hyperparameters."""
        return self.run.recipe if self.elsewhere is None else Recipe()

    @property
    def epochs(self) -> int | str | None:
        """Epochs of the run; None if the document does not state them."""
        return self.run.recipe.epochs if self.epochs_stated else None

    @property
    def global_batch(self) -> int | None:
        """Images per step; None for a figure of another number of devices than the run's."""
        same = self.num_devices == self.run.num_devices
        return self.recipe.global_batch if same else None

    @property
    def tolerance(self) -> float:
        """Largest difference of a reproduction by one run, in the row's unit."""
        if self.figure in ACCURACY:
            return TOP1_TOLERANCE_POINTS if self.spread is None else SPREADS * self.spread
        upper = self.figure in ("latency_ms_p90", "latency_ms_p95", "latency_ms_p99")
        return (PERCENTILE_TOLERANCE if upper else THROUGHPUT_TOLERANCE) * self.value


try:  # libyaml's loader is ten times faster, but not every build of PyYAML has it
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]


@cache
def _content() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.yml").read_text(encoding="utf-8")
    # Garbage collections of the growing tree would take a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        content: dict[str, Any] = yaml.load(text, Loader=SafeLoader)
    finally:
        if collecting:
            gc.enable()
    return content


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in _content()["runs"]}


@cache
def load_hardware() -> dict[str, Hardware]:
    """Return the devices that ``published.yml`` names, by key."""
    return {key: Hardware(**fields) for key, fields in _content()["hardware"].items()}


@cache
def load_runs() -> tuple[PublishedRun, ...]:
    """Read every run of ``published.yml``, in the file's order.

    Raises:
        ValueError: two runs have the same id, or one has neither ``run`` nor ``why_not``.
    """
    content = _content()
    sources = {key: Source(**fields) for key, fields in content["sources"].items()}
    runs: dict[str, PublishedRun] = {}
    for entry in content["runs"]:
        name, source, what = entry["id"], entry["source"], dict(entry["what"])
        if name in runs:
            raise ValueError(f"published.yml: {name} appears twice")
        if ("run" in entry) == ("why_not" in entry):
            raise ValueError(f"published.yml: {name} needs either run or why_not")
        device = what.pop("hardware", None)
        described = Hardware(**device) if isinstance(device, dict) else None
        runs[name] = PublishedRun(
            id=name,
            **what,
            hardware=described or load_hardware().get(device) or Hardware(device),
            source=sources[source] if isinstance(source, str) else Source(**source),
            recipe=Recipe(**entry.get("recipe", {})),
            named=RunName(**entry["run"]) if "run" in entry else None,
            why_not=entry.get("why_not"),
            differs=entry.get("differs", {}),
            note=entry.get("note"),
        )
    return tuple(runs.values())


@cache
def load_published() -> tuple[PublishedRow, ...]:
    """Return every figure of ``published.yml``, in the file's order.

    Raises:
        ValueError: a figure appears twice or is unknown.
    """
    return tuple(row for run in load_runs() for row in rows_of(run))


@cache
def rows_of(run: PublishedRun) -> tuple[PublishedRow, ...]:
    """Return the figures of one run: its own source's first, then those of other documents.

    Raises:
        ValueError: as `load_published`.
    """
    entry = _entries()[run.id]
    rows = list(_rows(entry, run, run.num_devices, {}))
    for other in entry.get("others", ()):
        common = {"elsewhere": other["source"], "note": other.get("note")}
        common |= {key: other[key] for key in ("same_as", "epochs_stated") if key in other}
        rows += _rows(other, run, other.get("num_devices", run.num_devices), common)
    seen: set[tuple[str, str, int | None]] = set()
    for row in rows:
        if row.figure not in FIGURES:
            raise ValueError(f"published.yml: {run.id}: unknown figure {row.figure!r}")
        key = (row.id, row.figure, row.num_devices)
        # A printed table may have two measurements of one batch size; both are kept.
        if key in seen and row.batch is None and row.requests is None:
            raise ValueError(f"published.yml: {key} appears twice")
        seen.add(key)
    return tuple(rows)


def _rows(
    entry: Mapping[str, Any],
    run: PublishedRun,
    num_devices: int | None,
    common: Mapping[str, Any],
) -> Iterator[PublishedRow]:
    """Yield the figures of one document. common: fields of every row."""
    figures = dict(entry.get("figures", {}))
    notes = entry.get("figure_notes", {})
    details: dict[str, dict[str, Any]] = {
        "top1": {"spread": figures.pop("top1_spread", None)},
        "train_speedup": {"over": figures.pop("speedup_over", None)},
    }
    printed = _by_devices(figures.pop("time_to_train_printed", {}), num_devices)

    def row(figure: str, value: float, devices: int | None, **fields: Any) -> PublishedRow:
        note = {"note": notes[figure]} if figure in notes else {}
        return PublishedRow(run, figure, value, devices, **{**common, **note, **fields})

    for end, value in zip(("low", "high"), figures.pop("top1_range", ()), strict=False):
        yield row(f"top1_{end}", value, num_devices)
    for figure, given in figures.items():
        for devices, value in _by_devices(given, num_devices).items():
            words = {"printed": printed.get(devices)} if figure == "time_to_train_min" else {}
            yield row(figure, value, devices, **details.get(figure, {}), **words)
    head, *lines = [line.split() for line in entry.get("inference", "").splitlines()] or [[]]
    for size, *cells in lines:
        size_key = "batch" if head[0] == "batch" else "requests"
        for column, cell in zip(head[1:], cells, strict=True):
            if cell != "-":
                figure = f"inference_{column}" if column.startswith("images_per_s") else column
                yield row(figure, float(cell), num_devices, **{size_key: int(size)})


def _by_devices(given: Any, num_devices: int | None) -> dict[int | None, Any]:
    return given if isinstance(given, dict) else {num_devices: given}


# Platforms whose published rows have the name of another one.
_SAME_PLATFORM = {"DGX1V-16G": "DGX1V"}

# How well a row fits a run; the lowest rank is chosen. The last one is never chosen, only shown.
_SOURCED, _NAMED, _OTHER_LENGTH, _ELSEWHERE, _NEVER_CHOSEN = range(5)


def rows_for(config: RunConfig) -> list[PublishedRow]:
    """Choose the rows that a run is compared with, one for each figure it can measure.

    First come the publications that the configuration names as its sources. If they do not have a
    figure, or have another number of epochs, it is the newest publication of the same model,
    platform and precision (and number of epochs, for accuracy). Published command lines turn the
    250-epoch configuration into the 90-epoch run, so the number of epochs decides, not the name of
    the recipe. Of rows for several numbers of devices it is the one with this run's, else the one
    with the most. Inference: each published batch size that this run measures.
    """
    chosen: dict[str, tuple[int, PublishedRow]] = {}
    for rank, row in _ranked(config):
        best_rank, best = chosen.get(row.key, (_NEVER_CHOSEN, None))
        if rank < best_rank or (best and rank == best_rank and _nearer(row, best, config)):
            chosen[row.key] = (rank, row)
    return [row for _, row in chosen.values()]


def other_rows_for(config: RunConfig) -> list[PublishedRow]:
    """Return the same figures of other publications, those with known settings first.

    A value that several documents print is returned once.
    """
    chosen = {row.key: row for row in rows_for(config)}
    taken = {(row.key, row.value, row.spread) for row in chosen.values()}
    others = []
    for rank, row in sorted(_ranked(config), key=lambda ranked: ranked[0]):
        best, printed = chosen.get(row.key), (row.key, row.value, row.spread)
        if best is None or row.num_devices != best.num_devices:
            continue
        if rank != _OTHER_LENGTH and printed not in taken:
            taken.add(printed)
            others.append(row)
    return others


def _nearer(row: PublishedRow, best: PublishedRow, config: RunConfig) -> bool:
    """Return whether ``row`` has a better number of devices than another row of its run."""
    counts = [(one.num_devices == config.world_size, one.num_devices or 0) for one in (row, best)]
    return row.id == best.id and counts[0] > counts[1]


def _ranked(config: RunConfig) -> Iterator[tuple[int, PublishedRow]]:
    inference = config.run.mode == "benchmark_inference"
    runs = {run.id: run for run in load_runs()}
    sourced = [runs[name] for name in config.sources if name in runs]
    named = [run for run in runs.values() if run not in sourced and _has_names(run, config)]
    for run in (*sourced, *named):
        for row in rows_of(run):
            if row.figure not in (INFERENCE if inference else TRAINING):
                continue
            if row.requests is not None or row.same_as is not None:
                continue
            if inference and row.batch not in config.run.inference_batches:
                continue
            rank = _rank(row, run in sourced, config)
            if rank is not None:
                yield rank, row


def _has_names(run: PublishedRun, config: RunConfig) -> bool:
    names = config.names
    platform = _SAME_PLATFORM.get(names.platform, names.platform)
    return run.named is not None and (
        (run.named.model, run.named.platform, run.named.precision)
        == (names.model, platform, names.precision)
    )


def _rank(row: PublishedRow, sourced: bool, config: RunConfig) -> int | None:
    """Rank a row; None for an accuracy of another number of epochs, unless it is a source."""
    accuracy = row.figure in ACCURACY
    length = row.run.recipe.epochs
    if accuracy and not sourced and length not in (None, config.schedule.epochs):
        return None
    if row.elsewhere is not None or (accuracy and row.epochs is None):
        return _ELSEWHERE if sourced else _NEVER_CHOSEN
    if accuracy and length != config.schedule.epochs:
        return _OTHER_LENGTH
    return _SOURCED if sourced else _NAMED
