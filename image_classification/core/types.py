"""The data that crosses layers: no behaviour, no torch import at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device.

    images: ``[N, 3, H, W]`` float, normalised. labels: ``[N]`` int64 class indices, or
    ``[N, C]`` float soft targets after mixing. valid: ``[N]`` bool, False on padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True)
class Decoding:
    """What turned files into pixels of the network's size: two of them differ by a few values.

    decoder: library that decodes JPEGs. resampler: library that scales them.
    """

    decoder: str
    resampler: str


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step leaves behind, as device tensors (0-d) and host numbers.

    loss: mean over the global batch's samples *on this rank* (float32). num_images: of the global
    batch over all ranks. Device tensors reach the host at logging boundaries only.
    """

    step: int
    epoch: int
    lr: float
    loss: torch.Tensor
    num_images: int
    data_wait_s: float


@dataclass(frozen=True)
class EvalResult:
    """Exact evaluation over a whole validation set; top1, top5 and topk in percent.

    topk counts the k best classes, k being ``run.topk``; with fewer classes than 5 or k, all.
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
    """One line for the sinks.

    kind is one of ``start``, ``step``, ``epoch``, ``validation``, ``validation_ema``,
    ``checkpoint``, ``inference``, ``data``, ``telemetry``, ``warning``, ``end``; ``epoch`` counts
    from 0. ``values`` holds plain numbers and strings whose units are in their names.
    """

    kind: str
    step: int
    epoch: int
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DevicesFound:
    """What the hardware probe saw on this node, as plain values.

    kind: ``cuda``, ``cpu``, ``hpu``, ``xpu``. names: marketing names, one a device.
    capabilities: for cuda ``"8.0"`` and the like, else empty strings.
    """

    kind: str
    names: tuple[str, ...]
    capabilities: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self.names)


@dataclass(frozen=True)
class WorldInfo:
    """Where a process stands among all processes of a run (ranks count from 0)."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    num_nodes: int = 1
