"""Averaging gradients over ranks: what DistributedDataParallel is told.

The one place where a resolved configuration becomes the parts of a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from image_classification import models
from image_classification.config.schema import OptimConfig, RunConfig
from image_classification.core.types import WorldInfo
from image_classification.data.loaders.protocol import Loader, LoaderSpec, open_loader
from image_classification.devices.accelerator import Accelerator
from image_classification.engine.precision.apex import (
    apex_optimizer,
    find_apex,
    open_apex_amp,
    require_amp,
    require_optimizers,
)
from image_classification.engine.precision.torch_amp import Amp, TorchAmp
from image_classification.engine.train_state import Progress
from image_classification.models.weights import load_weights
from image_classification.optim import optimizers
from image_classification.optim.ema import Ema
from image_classification.optim.losses import Mixer, build_loss
from image_classification.optim.optimizers import param_groups
from image_classification.optim.schedules import Schedule
from image_classification.telemetry.training_windows import TrainingWindows

_HOOKS = {
    "fp16": default_hooks.fp16_compress_hook,
    "bf16": default_hooks.bf16_compress_hook,
}


# Two, as batch normalization needs more than one value a channel where 64 px have become 1.
_PROBE_IMAGES, _PROBE_SIZE_PX = 2, 64


def static_graph_allowed(config: RunConfig) -> bool:
    """Return whether DDP may take every step's graph for the same.

    The networks here use every parameter in every step. With accumulation the reducer's own
    assertion fails in the first ``no_sync`` (torch 2.10), and torch.compile splits the graph at
    DDP's buckets by itself.
    """
    return config.batch.accumulation == 1 and not config.model.compile


def _settle_buckets(ddp: DistributedDataParallel, model: nn.Module, device: torch.device) -> None:
    """Take two backward passes on zeros, after which DDP keeps the layout of its buckets.

    DDP lays them out anew after its first step (with a static graph: its second). Three ranks or
    more add in an order that follows from the layout, so that a resumed run would round its first
    steps as no other and not be the run it continues. Weights and buffers stay as they are.
    """
    kept = [buffer.clone() for buffer in model.buffers()]
    training = model.training
    model.train()
    images = torch.zeros(_PROBE_IMAGES, 3, _PROBE_SIZE_PX, _PROBE_SIZE_PX, device=device)
    for _ in range(2):
        ddp(images).sum().backward()
    model.train(training)
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)


def data_parallel(
    model: nn.Module, config: RunConfig, device: torch.device
) -> DistributedDataParallel:
    """Wrap ``model`` (on ``device``) so that gradients are averaged over all ranks.

    With ``optim.gradient_compression`` they travel as float16 or bfloat16, halving the traffic.
    """
    ddp = DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index],
        # Rank 0's BN statistics are broadcast before evaluation and saving instead of
        # before every step; training-mode results do not depend on them.
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=static_graph_allowed(config),
    )
    if not config.model.compile:
        _settle_buckets(ddp, model, device)
    compression = config.optim.gradient_compression
    if compression != "none":
        ddp.register_comm_hook(None, _HOOKS[compression])
    return ddp


LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Parts:
    """The network and all that trains it, on one rank's device.

    model is the bare module (checkpoints, evaluation); stepped is what the training step calls:
    the same weights behind compilation and gradient averaging over ranks (ddp, if any).
    """

    model: nn.Module
    stepped: nn.Module
    ddp: DistributedDataParallel | None
    optimizer: torch.optim.Optimizer
    amp: Amp
    loss_fn: LossFn
    mixer: Mixer | None
    ema: Ema | None


@dataclass
class Run:
    """One run on one rank.

    counted_from: the step ``run_epochs`` counts from; None: where this process begins.
    """

    config: RunConfig
    world: WorldInfo
    accelerator: Accelerator
    device: torch.device
    workspace: Path
    parts: Parts | None = None
    train_loader: Loader | None = None
    val_loader: Loader | None = None
    schedule: Schedule | None = None
    progress: Progress = field(default_factory=Progress)
    counted_from: int | None = None
    work: TrainingWindows = field(default_factory=TrainingWindows)

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.workspace / "checkpoints"

    def close(self) -> None:
        """Stop the loaders' workers; leave torch as it was found."""
        if self.parts is not None:
            self.parts.amp.close()
        for loader in (self.train_loader, self.val_loader):
            if loader is not None:
                loader.close()


def build_model(config: RunConfig) -> nn.Module:
    """Build the network from the seed alone: equal on every rank and every start.

    Raises:
        ConfigError: unknown model or option. CheckpointError: unusable pretrained file.
    """
    m = config.model
    torch.manual_seed(config.run.seed)
    model = models.build(
        m.name,
        m.num_classes,
        init=m.init,
        zero_init_last_gamma=m.zero_init_last_gamma,
        se_reduction=m.se_reduction,
    )
    if m.pretrained_from_file is not None:
        load_weights(model, Path(m.pretrained_from_file))
    return model


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """Build the optimizer over ``groups`` in torch's or Apex's implementation.

    Raises:
        ConfigError: unknown name, options the optimizer does not have, or Apex is not installed.
    """
    if config.implementation == "apex":
        return apex_optimizer(groups, config, device_kind)
    return optimizers.build_optimizer(groups, config, device_kind)


def build_amp(
    config: RunConfig,
    accelerator: Accelerator,
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Amp:
    """Make the run's mixed precision; ``model`` is not yet wrapped.

    Raises:
        ConfigError: it is Apex's, which cannot be used here.
    """
    precision = config.precision
    if precision.amp_backend == "apex":
        return open_apex_amp(model, optimizer, precision.loss_scale, device)
    scaler = accelerator.grad_scaler(precision.loss_scale)
    return TorchAmp(accelerator, precision.dtype, scaler, optimizer)


def build_parts(
    config: RunConfig, world: WorldInfo, accelerator: Accelerator, device: torch.device
) -> Parts:
    """Put the network on ``device`` and make its optimizer, loss, mixing and average.

    Raises:
        DeviceError: the device lacks the precision asked for.
    """
    accelerator.check_precision(config.precision.name, config.precision.dtype)
    accelerator.set_matmul_precision(config.precision.name)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    layout = (
        torch.channels_last if config.model.memory_format == "nhwc" else torch.contiguous_format
    )
    model = build_model(config).to(device=device).to(memory_format=layout)  # type: ignore[call-overload]
    groups = param_groups(model, config.optim.weight_decay, config.optim.decay_rule)
    optimizer = build_optimizer(groups, config.optim, device.type)
    amp = build_amp(config, accelerator, device, model, optimizer)
    ema = Ema(model, config.ema.decay) if config.ema.decay is not None else None
    stepped: nn.Module = model
    ddp: DistributedDataParallel | None = None
    if world.world_size > 1:
        stepped = ddp = data_parallel(model, config, device)
    if config.model.compile:
        stepped = torch.compile(stepped)  # type: ignore[assignment]
    mixing = config.mixing
    mixer = (
        Mixer(mixing, config.model.num_classes, config.run.seed)
        if mixing.mixup > 0 or mixing.cutmix > 0
        else None
    )
    return Parts(
        model=model,
        stepped=stepped,
        ddp=ddp,
        optimizer=optimizer,
        amp=amp,
        loss_fn=build_loss(config.loss),
        mixer=mixer,
        ema=ema,
    )


def open_split(config: RunConfig, split: str, world: WorldInfo, device: torch.device) -> Loader:
    """Open the training or validation images for this rank.

    Raises:
        DataError: the data set cannot be used as it is. ConfigError: no such backend.
    """
    return open_loader(
        LoaderSpec(
            data=config.data,
            split=split,
            per_device_batch=config.batch.per_device_batch,
            accumulation=config.batch.accumulation,
            num_classes=config.model.num_classes,
            rank=world.rank,
            world_size=world.world_size,
            seed=config.run.seed,
            device=str(device),
            memory_format=config.model.memory_format,
        )
    )


def build_run(
    config: RunConfig,
    world: WorldInfo,
    accelerator: Accelerator,
    device: torch.device,
    workspace: Path,
) -> Run:
    """Build what the configuration's mode needs, and no more.

    Raises:
        UserError: anything the user can mend, before a single step is taken.
    """
    assert config.world_size == world.world_size, (config.world_size, world)
    mode = config.run.mode
    training = mode in ("convergence", "benchmark_training", "benchmark_training_short")
    run = Run(config, world, accelerator, device, workspace)
    try:
        if config.precision.amp_backend == "apex":
            require_amp(find_apex())
        if config.optim.implementation == "apex":
            require_optimizers(find_apex())
        # The data first: what is wrong with it shows in a second, before the network is built.
        if training or mode == "benchmark_data":
            run.train_loader = open_split(config, "train", world, device)
        if (
            mode == "evaluate"
            or mode == "benchmark_inference"
            or (training and config.run.validate)
        ):
            run.val_loader = open_split(config, "val", world, device)
        if mode == "benchmark_data":
            return run
        run.parts = build_parts(config, world, accelerator, device)
        if training:
            assert run.train_loader is not None
            run.schedule = Schedule(
                config.schedule, config.optim.lr, run.train_loader.steps_per_epoch
            )
    except BaseException:
        run.close()
        raise
    return run
