"""Runs of publications and their figures, as ``published.yml`` has them.

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

from image_classification.reporting.figures import ACCURACY, FIGURES

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
    platform: str | None
    precision: str | None
    kind: Kind
    hardware: Hardware
    num_devices: int | None
    source: Source
    recipe: Recipe
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
    def unit(self) -> str:
        """Unit of value and spread."""
        return FIGURES[self.figure].unit

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

# Columns of inference tables whose figure has another name.
_COLUMNS = {
    "images_per_s": "inference_images_per_s",
    "images_per_s_speedup": "inference_images_per_s_speedup",
}
# Keys of `figures` that are details of another figure.
_PARTS = ("top1_spread", "top1_range", "speedup_over", "time_to_train_printed")


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
def load_runs() -> tuple[PublishedRun, ...]:
    """Read every run of ``published.yml``, in the file's order.

    Raises:
        ValueError: two runs have the same id, or one has neither ``run`` nor ``why_not``.
    """
    content = _content()
    sources = {key: Source(**fields) for key, fields in content["sources"].items()}
    hardware = {key: Hardware(**fields) for key, fields in content["hardware"].items()}
    runs: dict[str, PublishedRun] = {}
    for entry in content["runs"]:
        run = _run(entry, sources, hardware)
        if run.id in runs:
            raise ValueError(f"published.yml: {run.id} appears twice")
        if (run.named is None) == (run.why_not is None):
            raise ValueError(f"published.yml: {run.id} needs either run or why_not")
        runs[run.id] = run
    return tuple(runs.values())


def _run(
    entry: Mapping[str, Any], sources: Mapping[str, Source], hardware: Mapping[str, Hardware]
) -> PublishedRun:
    source, what = entry["source"], entry["what"]
    device = what.get("hardware")
    return PublishedRun(
        id=entry["id"],
        model=what["model"],
        platform=what.get("platform"),
        precision=what.get("precision"),
        kind=what["kind"],
        hardware=hardware.get(device) or Hardware(device),
        num_devices=what.get("num_devices"),
        source=sources[source] if isinstance(source, str) else Source(**source),
        recipe=Recipe(**entry.get("recipe", {})),
        named=RunName(**entry["run"]) if "run" in entry else None,
        why_not=entry.get("why_not"),
        differs=entry.get("differs", {}),
        note=entry.get("note"),
    )


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
    rows = tuple(_all_rows(entry, run))
    seen: set[tuple[str, str, int | None]] = set()
    for row in rows:
        if row.figure not in FIGURES:
            raise ValueError(f"published.yml: {run.id}: unknown figure {row.figure!r}")
        key = (row.id, row.figure, row.num_devices)
        # A printed table may have two measurements of one batch size; both are kept.
        if key in seen and row.batch is None and row.requests is None:
            raise ValueError(f"published.yml: {key} appears twice")
        seen.add(key)
    return rows


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in _content()["runs"]}


def _all_rows(entry: Mapping[str, Any], run: PublishedRun) -> Iterator[PublishedRow]:
    notes = entry.get("figure_notes", {})
    yield from _rows(entry, run, run.num_devices, {}, notes)
    for other in entry.get("others", ()):
        common = {"elsewhere": other["source"], "note": other.get("note")}
        common |= {key: other[key] for key in ("same_as", "epochs_stated") if key in other}
        yield from _rows(other, run, other.get("num_devices", run.num_devices), common, {})


def _rows(
    entry: Mapping[str, Any],
    run: PublishedRun,
    num_devices: int | None,
    common: Mapping[str, Any],
    notes: Mapping[str, str],
) -> Iterator[PublishedRow]:
    figures = entry.get("figures", {})
    printed = _by_devices(figures.get("time_to_train_printed"), num_devices)
    for end, value in zip(("low", "high"), figures.get("top1_range", ()), strict=False):
        yield PublishedRow(run, f"top1_{end}", value, num_devices, **common)
    for figure, given in figures.items():
        if figure in _PARTS:
            continue
        for devices, value in _by_devices(given, num_devices).items():
            own = dict(common)
            if figure in notes:
                own["note"] = notes[figure]
            if figure == "top1":
                own["spread"] = figures.get("top1_spread")
            elif figure == "train_speedup":
                own["over"] = figures.get("speedup_over")
            elif figure == "time_to_train_min":
                own["printed"] = printed.get(devices)
            yield PublishedRow(run, figure, value, devices, **own)
    for batch_or_requests, values in _table(entry.get("inference", "")):
        for figure, value in values.items():
            own = dict(common) | ({"note": notes[figure]} if figure in notes else {})
            yield PublishedRow(run, figure, value, num_devices, **batch_or_requests, **own)


def _by_devices(given: Any, num_devices: int | None) -> dict[int | None, Any]:
    return given if isinstance(given, dict) else {} if given is None else {num_devices: given}


def _table(text: str) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    lines = [line.split() for line in text.splitlines()]
    for cells in lines[1:]:
        (what, *columns), (size, *values) = lines[0], cells
        key = "batch" if what == "batch" else "requests"
        yield (
            {key: int(size)},
            {
                _COLUMNS.get(column, column): float(value)
                for column, value in zip(columns, values, strict=True)
                if value != "-"
            },
        )
