"""Build the parts of a run from its resolved configuration."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from image_classification import models
from image_classification.config.schema import OptimConfig, RunConfig
from image_classification.core.errors import CheckpointError
from image_classification.data.formats.index import ClassesError
from image_classification.data.loaders import Loader, LoaderSpec, open_loader
from image_classification.engine.checkpoints.restore import (
    check_class_names,
    find_resumed,
    find_weights,
)
from image_classification.engine.precision import (
    Amp,
    ApexAmp,
    TorchAmp,
    apex_optimizer,
    require_apex,
)
from image_classification.engine.runs import EvaluationRun, LoaderBenchmark, Parts, Run, TrainingRun
from image_classification.models.weights import load_pretrained, load_weights
from image_classification.optim import optimizers
from image_classification.optim.ema import Ema
from image_classification.optim.losses import Mixer, build_loss
from image_classification.optim.optimizers import param_groups
from image_classification.optim.schedules import Schedule

_COMPRESSION_HOOKS = {
    "fp16": default_hooks.fp16_compress_hook,
    "bf16": default_hooks.bf16_compress_hook,
}
_LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}


def build_training(base: Run) -> TrainingRun:
    """Build a run for `train`; the caller closes ``base``, also after an error.

    Raises:
        UserError: anything the user can fix, before the first step.
    """
    config = base.config
    require_apex(config)
    # The data first: its errors show within a second, before the network is built.
    base.source = find_resumed(base)
    classes = base.source.classes if base.source is not None else None
    try:
        train_loader = open_split(base, "train", classes)
    except ClassesError as error:
        if not config.run.allow_changes:
            raise CheckpointError(
                f"{base.source and base.source.checkpoint} cannot be continued: {error.message}"
            ) from error
        train_loader = open_split(base, "train")
        classes = None
    base.classes = train_loader.class_names
    return TrainingRun(
        **vars(base),
        train_loader=train_loader,
        val_loader=open_split(base, "val", classes) if config.run.validate else None,
        parts=build_parts(base),
        schedule=Schedule(config.schedule, config.optim.lr, train_loader.steps_per_epoch),
    )


def build_evaluation(base: Run) -> EvaluationRun:
    """Build a run for `evaluate_run` or `benchmark_inference`; see `build_training`."""
    require_apex(base.config)
    base.source = find_weights(base)
    # An inference benchmark does not use the labels.
    evaluates = base.config.run.mode == "evaluate" and base.source is not None
    val_loader = open_split(base, "val", base.source.classes if base.source and evaluates else None)
    base.classes = val_loader.class_names
    if evaluates and base.source is not None:
        check_class_names(base.source, val_loader, base.notes)
    return EvaluationRun(**vars(base), parts=build_parts(base), val_loader=val_loader)


def build_loader_benchmark(base: Run) -> LoaderBenchmark:
    """Build a run for `benchmark_data`; see `build_training`."""
    require_apex(base.config)
    return LoaderBenchmark(**vars(base), train_loader=open_split(base, "train"))


def open_split(run: Run, split: str, classes: tuple[str, ...] | None = None) -> Loader:
    """Open the ``train`` or ``val`` images for this rank; ``run`` closes them.

    classes: the model's class names, to which labels are mapped; None keeps the data set's.
    """
    config = run.config
    run.activity.begin(f"opening the {'validation' if split == 'val' else 'training'} images")
    loader = open_loader(
        LoaderSpec(
            data=config.data,
            split=split,
            per_device_batch=config.batch.per_device_batch,
            accumulation=config.batch.accumulation,
            num_classes=config.model.num_classes,
            rank=run.world.rank,
            world_size=run.world.world_size,
            seed=config.run.seed,
            device=str(run.device),
            memory_format=config.model.memory_format,
            classes=classes,
        )
    )
    run.cleanup.callback(loader.close)
    return loader


def build_parts(run: Run) -> Parts:
    """Put the network on the device and build its optimizer, loss, mixing and moving average."""
    config, device = run.config, run.device
    precision, mixing = config.precision, config.mixing
    run.activity.begin("building the model")
    run.accelerator.check_precision(precision.name, precision.dtype)
    run.accelerator.set_matmul_precision(precision.name)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    layout = _LAYOUTS[config.model.memory_format]
    model = _build_model(run).to(device=device).to(memory_format=layout)  # type: ignore[call-overload]
    groups = param_groups(model, config.optim.weight_decay, config.optim.decay_rule)
    optimizer = build_optimizer(groups, config.optim, device.type)
    amp: Amp
    if precision.amp_backend == "apex":
        # Apex prepares the model before DDP wraps it.
        amp = ApexAmp(model, optimizer, precision.loss_scale, device)
    else:
        scaler = run.accelerator.grad_scaler(precision.loss_scale)
        amp = TorchAmp(run.accelerator, precision.dtype, scaler, optimizer)
    run.cleanup.callback(amp.close)
    ema = Ema(model, config.ema.decay) if config.ema.decay is not None else None
    stepped: nn.Module = model
    ddp: DistributedDataParallel | None = None
    if run.world.world_size > 1:
        stepped = ddp = data_parallel(model, config, device)
    if config.model.compile:
        stepped = torch.compile(stepped)  # type: ignore[assignment]
    mixer = None
    if mixing.mixup > 0 or mixing.cutmix > 0:
        mixer = Mixer(mixing, config.model.num_classes, config.run.seed)
    return Parts(model, stepped, ddp, optimizer, amp, build_loss(config.loss), mixer, ema)


def _build_model(run: Run) -> nn.Module:
    """Build the network; its initial weights depend only on the seed, so all ranks agree."""
    config, m = run.config, run.config.model
    torch.manual_seed(config.run.seed)
    model = models.build(
        m.name,
        m.num_classes,
        init=m.init,
        zero_init_last_gamma=m.zero_init_last_gamma,
        se_reduction=m.se_reduction,
    )
    if m.pretrained_from_file is not None:
        if config.run.mode in ("evaluate", "benchmark_inference"):
            load_weights(model, m.pretrained_from_file)
        else:
            notes = load_pretrained(model, m.pretrained_from_file, run.classes)
            if run.source is None:  # else a checkpoint replaces these weights
                run.notes += notes
    return model


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """Build the optimizer over ``groups`` in torch's or Apex's implementation."""
    build = apex_optimizer if config.implementation == "apex" else optimizers.build_optimizer
    return build(groups, config, device_kind)


def data_parallel(
    model: nn.Module, config: RunConfig, device: torch.device
) -> DistributedDataParallel:
    """Wrap ``model`` (on ``device``) so that gradients are averaged over all ranks.

    With ``optim.gradient_compression`` they are sent as float16 or bfloat16.
    """
    ddp = DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index],
        # Rank 0's BN statistics are broadcast before evaluation and saving instead of before
        # every step; training does not use them.
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=static_graph_allowed(config),
    )
    if not config.model.compile:
        _fix_bucket_layout(ddp, model, device)
    compression = config.optim.gradient_compression
    if compression != "none":
        ddp.register_comm_hook(None, _COMPRESSION_HOOKS[compression])
    return ddp


def static_graph_allowed(config: RunConfig) -> bool:
    """Return whether DDP may assume the same graph in every step.

    The networks here use every parameter in every step. But with accumulation DDP's reducer fails
    an assertion in the first ``no_sync`` (torch 2.10), and torch.compile splits the graph at DDP's
    buckets itself.
    """
    return config.batch.accumulation == 1 and not config.model.compile


def _fix_bucket_layout(
    ddp: DistributedDataParallel, model: nn.Module, device: torch.device
) -> None:
    """Run two backward passes on zeros, after which DDP keeps its bucket layout.

    DDP rebuilds its buckets after its first step (static graph: second). Three or more ranks add
    gradients in an order that depends on the layout, so without this a resumed run would round its
    first steps differently from an uninterrupted one. Weights and buffers are unchanged.
    """
    saved = [buffer.clone() for buffer in model.buffers()]
    training = model.training
    model.train()
    # Two images, as batch normalization needs more than one value per channel where 64 px became 1.
    images = torch.zeros(2, 3, 64, 64, device=device)
    for _ in range(2):
        ddp(images).sum().backward()
    model.train(training)
    model.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), saved, strict=True):
            buffer.copy_(value)
