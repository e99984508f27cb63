"""One optimizer step: accumulate micro-batches, update the weights and the moving average.

The host does not wait for the device here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch

from image_classification.core.types import Batch, StepMetrics
from image_classification.engine.finiteness import FinitenessMonitor
from image_classification.engine.runs import TrainingRun


def train_step(
    run: TrainingRun,
    batches: Iterator[Batch],
    step: int,
    epoch: int,
    monitor: FinitenessMonitor,
) -> StepMetrics:
    """Run optimizer step ``step`` on the next ``accumulation`` micro-batches.

    The loss is the mean over the micro-batches on this rank, so it does not depend on how the
    global batch is split. Gradients are averaged over ranks in the last micro-batch only.
    """
    parts, config, world = run.parts, run.config, run.world
    lr = run.schedule.lr(step)
    for group in parts.optimizer.param_groups:
        group["lr"] = lr
    _seed_step(config.run.seed, step, world.rank)
    accumulation = config.batch.accumulation
    loss_sum = torch.zeros((), dtype=torch.float32, device=run.device)
    losses = []
    data_wait_s = 0.0
    for micro in range(accumulation):
        wait_started = run.activity.waiting_since_s = time.perf_counter()
        batch = next(batches)
        data_wait_s += time.perf_counter() - wait_started
        run.activity.waiting_since_s = None
        images, labels = batch.images, batch.labels
        if parts.mixer is not None:
            micro_batch_id = (step * accumulation + micro) * world.world_size + world.rank
            images, labels = parts.mixer(images, labels, micro_batch_id)
        last = micro == accumulation - 1
        with nullcontext() if last or parts.ddp is None else parts.ddp.no_sync():
            with parts.amp.autocast():
                loss = parts.loss_fn(parts.stepped(images), labels)
            parts.amp.backward(loss / accumulation, last)
        losses.append(loss.detach())
        loss_sum += loss.detach().float()
    applied = parts.amp.update(partial(monitor.record, step, epoch, lr, tuple(losses)))
    # Without arguments: Apex's optimizers take none, and torch's set gradients to None by default.
    parts.optimizer.zero_grad()
    if parts.ema is not None:
        parts.ema.update(parts.model, applied)
    return StepMetrics(
        step=step,
        epoch=epoch,
        lr=lr,
        loss=loss_sum / accumulation,
        num_images=config.batch.global_batch,
        data_wait_s=data_wait_s,
    )


def _seed_step(seed: int, step: int, rank: int) -> None:
    # Seeding per step gives a resumed run the random numbers of an uninterrupted one without stored
    # generator states.
    # Odd multipliers spread neighboring steps and ranks over the 64-bit seed space.
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    torch.manual_seed(mixed % (1 << 63))
