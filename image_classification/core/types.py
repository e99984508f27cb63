"""Plain data passed between layers; torch is imported for type checking only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device.

    images: ``[N, 3, H, W]`` float, normalized. labels: ``[N]`` int64 class indices, or ``[N, C]``
    float soft targets after mixing. valid: ``[N]`` bool, False for padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True)
class Decoding:
    """The libraries that decode and resize JPEGs; others give slightly different pixels."""

    decoder: str
    resampler: str


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step.

    loss: mean over this rank's part of the global batch, a 0-d float32 tensor on the device, copied
    to the host only when it is logged. num_images: images of the global batch over all ranks.
    """

    step: int
    epoch: int
    lr: float
    loss: torch.Tensor
    num_images: int
    data_wait_s: float


@dataclass(frozen=True)
class EvalResult:
    """Result of an exact evaluation of the whole validation set; accuracies in percent.

    k: ``run.topk``. With fewer than 5 or k classes, all classes count.
    """

    top1: float
    top5: float
    loss: float
    images: int
    time_s: float = 0.0
    k: int = 5
    topk: float | None = None


@dataclass(frozen=True)
class Record:
    """One record of a run for the sinks.

    kind: ``start``, ``step``, ``epoch``, ``validation``, ``validation_ema``, ``checkpoint``,
    ``inference``, ``data``, ``telemetry``, ``warning`` or ``end``. epoch: from 0. values: numbers
    and texts, with units in their names.
    """

    kind: str
    step: int
    epoch: int
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DevicesFound:
    """The devices of this node.

    kind: ``cuda``, ``cpu``, ``hpu`` or ``xpu``. names: product names, one per device. capabilities:
    compute capabilities such as ``"8.0"`` for cuda, else empty strings.
    """

    kind: str
    names: tuple[str, ...]
    capabilities: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.names)


@dataclass(frozen=True)
class WorldInfo:
    """The rank of a process, from 0, and the number of processes and nodes of its run."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    num_nodes: int = 1
