"""What ``published.yml`` holds, typed: a run of a publication and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from image_classification.reporting.published_figures import ACCURACY, FIGURES

SPREADS = 2.0
"""One run may differ from a published mean by this many of its printed spreads: a spread is about
one standard deviation over seeds, and a true reproduction stays within two of them 95 % of the
time."""

TOP1_TOLERANCE_POINTS = 0.2
"""Allowed difference in top-1 and top-5 where no spread is printed: about two standard deviations
over seeds of ResNet-50 (0.05 to 0.16 points in the published tables)."""

THROUGHPUT_TOLERANCE = 0.05
"""Allowed relative difference of everything else; no published speed prints a spread."""

PERCENTILE_TOLERANCE = 0.10
"""Allowed relative difference of latency's upper percentiles, which a few slow passes move."""

Kind = Literal["convergence", "throughput", "inference", "recipe-only"]


@dataclass(frozen=True)
class Hardware:
    """The devices behind a figure. ``device_name`` is part of the device's own name.

    name: None where the source does not say. device (``cuda``, ``hpu``) and device_name: None for
    devices that no configuration runs on.
    """

    name: str | None = None
    device: str | None = None
    device_name: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a figure is printed. version: the container or release it was measured with."""

    name: str
    path: str | None = None
    version: str | None = None
    date: str | None = None

    @property
    def speed_version(self) -> str | None:
        """The version behind speeds, where accuracy was measured with another."""
        return self.version and self.version.rpartition("throughput ")[2]

    def __str__(self) -> str:
        detail = ", ".join(part for part in (self.version, self.date) if part)
        text = f"{self.name}, {self.path}" if self.path else self.name
        return f"{text} ({detail})" if detail else text


@dataclass(frozen=True)
class RunName:
    """The names under which ``configs.yml`` has a run; recipe None: its default."""

    model: str
    platform: str
    precision: str
    recipe: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters as published, None where the source is silent.

    epochs: a range as text (``33-37``) for runs to a target accuracy. per_device_batch,
    global_batch: images. lr: the peak. mixup: alpha.
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

    model, platform, precision: in the source's words. named: what reproduces it here; None with
    why_not. differs: setting -> why the named configuration has another value.
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

    value and spread are in ``unit``; spread is None where none is printed. batch: of inference
    figures, in images; requests: at once, of a server's. printed: the source's own words where
    ``value`` was worked out from them. over: what a speed-up is against. elsewhere: the document
    of a figure that is not in the run's own source; its hyperparameters are not known then.
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
        """The run's, with the document in parentheses where that is not the run's own."""
        return self.run.id if self.elsewhere is None else f"{self.run.id} ({self.elsewhere})"

    @property
    def model(self) -> str:
        """The model's name in configs.yml, else the source's."""
        return self.run.named.model if self.run.named else self.run.model

    @property
    def platform(self) -> str | None:
        """The platform's name in configs.yml, else the source's."""
        return self.run.named.platform if self.run.named else self.run.platform

    @property
    def precision(self) -> str | None:
        """The precision's name in configs.yml, else the source's."""
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
    def source(self) -> str:
        """Where it is printed, for people."""
        return self.elsewhere or str(self.run.source)

    @property
    def recipe(self) -> Recipe:
        """What is known of the hyperparameters."""
        return self.run.recipe if self.elsewhere is None else Recipe()

    @property
    def epochs(self) -> int | str | None:
        """How many epochs the run had, if its document says so."""
        return self.run.recipe.epochs if self.epochs_stated else None

    @property
    def per_device_batch(self) -> int | None:
        """Images a device and step."""
        return self.recipe.per_device_batch

    @property
    def global_batch(self) -> int | None:
        """Images a step; None for a figure of another number of devices than the run's."""
        same = self.num_devices == self.run.num_devices
        return self.recipe.global_batch if same else None

    @property
    def tolerance(self) -> float:
        """Largest difference of a reproduction, in the row's unit."""
        if self.figure in ACCURACY:
            return TOP1_TOLERANCE_POINTS if self.spread is None else SPREADS * self.spread
        return self.relative_tolerance * self.value

    @property
    def relative_tolerance(self) -> float:
        """The same as a share of the value, for everything but accuracy."""
        upper = self.figure in ("latency_ms_p90", "latency_ms_p95", "latency_ms_p99")
        return PERCENTILE_TOLERANCE if upper else THROUGHPUT_TOLERANCE
