"""Choose a per-device batch that the device's memory holds (``batch.fit_memory``)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from image_classification.config.placement import accumulation, per_device_batches
from image_classification.config.schema import BatchConfig, RunConfig
from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.core.units import counted
from image_classification.devices.accelerator import out_of_memory
from image_classification.distributed.collectives import agree_max
from image_classification.engine.build import build_evaluation, build_training
from image_classification.engine.finiteness import FinitenessMonitor
from image_classification.engine.runs import Run
from image_classification.engine.step import train_step

MEMORY_FRACTION = 0.9
"""Part of the device's free memory that a trial may use; the rest is for fragmentation."""

_GIB = 2**30


def fit_memory(run: Run, trial: Callable[[Run], None] | None = None) -> RunConfig:
    """Return the run's configuration with the largest per-device batch that fits.

    Tried are the divisors of the global batch per device, from the configured per-device batch
    down. Each trial runs the run's own step on noise, within `MEMORY_FRACTION` of the free memory.
    All ranks use the same batch. The result depends on the memory only. trial: for tests; raises
    `torch.OutOfMemoryError` if the batch of the run's configuration does not fit.

    Raises:
        DeviceError: not even one image fits.
    """
    config, trial = run.config, trial or _try_steps
    batch, world_size = config.batch, run.world.world_size
    free_bytes = run.accelerator.free_memory_bytes()
    if free_bytes is None:
        return config
    limit_bytes = int(MEMORY_FRACTION * free_bytes)
    too_large = None
    largest = batch.per_device_batch
    candidates = per_device_batches(batch.global_batch, world_size)
    for per_device in sorted((n for n in candidates if n <= largest), reverse=True):
        run.activity.begin(f"trying {counted(per_device, 'image')} per device")
        needed_bytes = _needed_bytes(run, per_device, limit_bytes, trial)
        if agree_max(int(needed_bytes is None)):
            too_large = per_device
            continue
        count = accumulation(batch.global_batch, per_device, world_size)
        note = (
            f"{per_device} per device x {counted(world_size, 'device')} x accumulation {count} = "
            f"global {batch.global_batch}"
        )
        if needed_bytes:
            note += f"; a step needs {needed_bytes / _GIB:.1f} of {limit_bytes / _GIB:.1f} GiB"
        if too_large is not None:
            note += f"; {too_large} images do not fit"
        chosen = replace(batch, per_device_batch=per_device, accumulation=count)
        provenance = {
            **config.provenance,
            "batch.per_device": f"largest up to {largest} that fits in the device's memory",
            "batch.accumulation": f"formula: {batch.global_batch} / ({per_device} x {world_size})",
        }
        warnings = (*config.warnings, f"per-device batch by memory: {note}")
        return replace(config, batch=chosen, provenance=provenance, warnings=warnings)
    raise DeviceError(
        f"one image of {config.data.image_size} px does not fit in {limit_bytes / _GIB:.1f} GiB of "
        "device memory; end other programs on the device, make --image-size smaller, or use a "
        "smaller model"
    )


def _needed_bytes(
    run: Run, per_device: int, limit_bytes: int, trial: Callable[[Run], None]
) -> int | None:
    """Return the peak memory of a trial, 0 if it is not measured; None if it does not fit."""
    config = run.config
    # Two micro-batches, as gradients are kept from one to the next.
    count = min(2, config.batch.global_batch // (per_device * run.world.world_size))
    tried = replace(
        config,
        batch=BatchConfig(
            per_device_batch=per_device, global_batch=per_device * count, accumulation=count
        ),
        model=replace(config.model, compile=False, pretrained_from_file=None),
        data=replace(
            config.data,
            path="synthetic",
            backend="synthetic",
            synthetic_train_images=2 * per_device * count,
            synthetic_val_images=per_device,
        ),
        run=replace(config.run, validate=False, resume=None, checkpoint=None),
    )
    alone = Run(tried, WorldInfo(), run.accelerator, run.device, run.workspace)
    try:
        with run.accelerator.memory_limit(limit_bytes):
            trial(alone)
            return run.accelerator.peak_memory_bytes() or 0
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    finally:
        alone.close()
        gc.collect()


def _try_steps(run: Run) -> None:
    """Run two training steps, or in the mode ``evaluate`` one forward pass. No collectives."""
    if run.config.run.mode == "evaluate":
        evaluation = build_evaluation(run)
        parts = evaluation.parts
        (batch,) = evaluation.val_loader.epoch(0)
        with torch.no_grad(), parts.amp.autocast():
            parts.model.eval()(batch.images)
        return
    training = build_training(run)
    monitor = FinitenessMonitor(run.device, run.config.run.max_skipped_steps_in_a_row)
    training.parts.model.train()
    batches = training.train_loader.epoch(0)
    for step in range(2):
        train_step(training, batches, step, 0, monitor)
    run.accelerator.synchronize()
