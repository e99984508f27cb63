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

    k: ``run.topk``. top5, topk: None with at most 5 or k classes, where every image would count.
    """

    top1: float
    top5: float | None
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
class Task:
    """What a run is doing: a phrase such as ``validating``, and its length in ``unit``, 0: unknown.

    trains: whether optimizer steps are being taken.
    """

    name: str
    total: int = 0
    unit: str = ""
    trains: bool = False


@dataclass
class Activity:
    """What this rank does now, for the live view.

    The training thread assigns single attributes and the view's thread reads them: neither waits
    for the other, and nothing is read from the device for it.

    done: how much of ``task``. step: optimizer steps done. data_wait_s: sum over them.
    waiting_since_s: start of the wait for a batch (`time.perf_counter`), None when there is none.
    loss: of one recent step on this rank. saving_step: being written while training continues.
    stopping: name of the signal that asked the run to stop. watched: whether anyone looks; the loss
    is provided only then. quiet: latencies are being timed, so the view must not be drawn.
    ended: only the report is left to write.
    """

    task: Task = Task("starting")
    done: int = 0
    step: int = 0
    data_wait_s: float = 0.0
    waiting_since_s: float | None = None
    loss: float | None = None
    saving_step: int | None = None
    stopping: str | None = None
    watched: bool = False
    quiet: bool = False
    ended: bool = False

    def begin(self, name: str, total: int = 0, unit: str = "", *, trains: bool = False) -> None:
        """Change the task; nothing of it is done yet."""
        self.done = 0
        self.task = Task(name, total, unit, trains)


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
