"""What a run consists of on one rank: a training run, an evaluation or a loader benchmark."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from image_classification.config.schema import RunConfig
from image_classification.core.types import Activity, Record, WorldInfo
from image_classification.core.units import weights_text
from image_classification.data.loaders import Loader
from image_classification.devices.accelerator import Accelerator
from image_classification.engine.precision import Amp
from image_classification.optim.ema import Ema
from image_classification.optim.losses import Mixer
from image_classification.optim.schedules import Schedule
from image_classification.telemetry.sampler import TrainingWindows


@dataclass
class Progress:
    """How far a training run is. ``step`` counts attempted optimizer updates.

    Epoch, learning rate, sample order, augmentation, mixing and torch's random numbers are
    functions of (seed, step), so a checkpoint needs nothing else to continue.

    closed_step: the last step whose epoch was validated and recorded; a run stopped between an
    epoch's last step and its validation validates first when resumed. skipped: fp16 overflows.
    elapsed_s: wall time over all starts, as far as saved; best_elapsed_s: the same at the best
    validation (None: unknown). starts: for each start its ``step``, ``world_size``,
    ``resumed_from`` (None: new) and ``changes`` (changed settings).
    """

    step: int = 0
    closed_step: int = 0
    best_top1: float | None = None
    best_step: int | None = None
    last_top1: float | None = None
    last_step: int | None = None
    validations_without_gain: int = 0
    skipped: int = 0
    elapsed_s: float = 0.0
    best_elapsed_s: float | None = None
    starts: list[dict[str, Any]] = field(default_factory=list)

    def note_validation(self, top1: float) -> bool:
        """Record a validation at the current step; return whether it is the best so far."""
        self.closed_step = self.last_step = self.step
        self.last_top1 = top1
        is_best = self.best_top1 is None or top1 > self.best_top1
        if is_best:
            self.best_top1, self.best_step = top1, self.step
            self.best_elapsed_s = self.elapsed_s
            self.validations_without_gain = 0
        else:
            self.validations_without_gain += 1
        return is_best

    def note_start(self, world_size: int, resumed_from: str | None, changes: list[str]) -> None:
        """Record that the run starts or continues at the current step."""
        start = {"step": self.step, "world_size": world_size}
        self.starts.append({**start, "resumed_from": resumed_from, "changes": changes})


@dataclass
class Parts:
    """The network and everything that trains it, on one rank's device.

    model: the bare module, for checkpoints and evaluation. stepped: what the training step calls,
    the same weights behind compilation and DDP. ddp: None in a world of one.
    """

    model: nn.Module
    stepped: nn.Module
    ddp: DistributedDataParallel | None
    optimizer: torch.optim.Optimizer
    amp: Amp
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    mixer: Mixer | None
    ema: Ema | None


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a run come from.

    file: the safetensors file. checkpoint: the folder that it is in; None for a file alone. which:
    ``best``, ``last``, ``step`` or ``file``. step, epoch (from 1): of a checkpoint. classes: the
    names that the file states. warnings: from finding it.
    """

    file: Path
    checkpoint: Path | None = None
    which: str = "file"
    step: int | None = None
    epoch: float | None = None
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """``results.evaluated`` of the report."""
        path = str(self.checkpoint or self.file)
        return {"checkpoint": path, "which": self.which, "epoch": self.epoch, "step": self.step}

    @property
    def text(self) -> str:
        """The source in words: ``best checkpoint (epoch 3, step 12): PATH``."""
        path = str(self.checkpoint or self.file)
        return weights_text(path, self.which, self.epoch, self.step)


@dataclass
class Run:
    """The part of a run that all modes share, on one rank; `engine.build` adds the parts of a mode.

    source: the checkpoint or file with the run's first weights, if any. classes: the class names in
    the order of the labels; None if unknown. notes: messages of building, for the records.
    run_epochs_from: the step that ``run.run_epochs`` counts from; None: where this process begins.
    cleanup: closes the loaders and undoes changes to torch.
    """

    config: RunConfig
    world: WorldInfo
    accelerator: Accelerator
    device: torch.device
    workspace: Path
    run_epochs_from: int | None = None
    source: WeightsSource | None = None
    classes: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    work: TrainingWindows = field(default_factory=TrainingWindows)
    activity: Activity = field(default_factory=Activity)
    cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.workspace / "checkpoints"

    def close(self) -> None:
        """Close the parts that were added; may be called twice."""
        self.cleanup.close()

    def record(self, kind: str, epoch: int = 0, **values: Any) -> Record:
        """Return a record of the current step."""
        return Record(kind, self.progress.step, epoch, values)

    def start_record(
        self,
        *,
        model: nn.Module | None = None,
        train_loader: Loader | None = None,
        val_loader: Loader | None = None,
        **values: Any,
    ) -> Record:
        """Return the ``start`` record; values that this kind of run does not have are None."""
        return self.record(
            "start",
            num_parameters=sum(p.numel() for p in model.parameters()) if model else None,
            weights=None if self.source is None else self.source.text,
            **values,
            num_train_images=train_loader.num_images if train_loader else None,
            num_val_images=val_loader.num_images if val_loader else None,
            world_size=self.world.world_size,
            global_batch=self.config.batch.global_batch,
            device=", ".join(sorted(set(self.accelerator.found().names))),
            data=self.config.data.path,
        )


@dataclass(kw_only=True)
class TrainingRun(Run):
    """A run that trains. val_loader: None without ``run.validate``."""

    parts: Parts
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader | None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.train_loader.steps_per_epoch


@dataclass(kw_only=True)
class EvaluationRun(Run):
    """A run that measures given weights: an evaluation or an inference benchmark."""

    parts: Parts
    val_loader: Loader


@dataclass(kw_only=True)
class LoaderBenchmark(Run):
    """A run that reads training batches and nothing else."""

    train_loader: Loader
