"""One optimizer step: accumulate micro-batches, update, move the average. Nothing waits here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import get_total_norm

from image_classification.core.types import Batch, StepMetrics
from image_classification.engine.build import Run
from image_classification.engine.health import Watch, poison


def scale_tensor(scaler: GradScaler) -> torch.Tensor | None:
    """Return the loss scale as a device tensor; None when scaling is off.

    `GradScaler.get_scale` copies to the host and so would make every step wait; the tensor
    itself has no public accessor.
    """
    return scaler._scale if scaler.is_enabled() else None


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step on one rank (dropout and the like).

    Deriving the state from (seed, step, rank) makes a resumed run draw what an uninterrupted one
    draws, without storing generator states.
    """
    # Odd multipliers spread neighbouring steps and ranks over the 64-bit seed space.
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    torch.manual_seed(mixed % (1 << 63))


def train_step(
    run: Run, batches: Iterator[Batch], step: int, epoch: int, watch: Watch
) -> StepMetrics:
    """Run optimizer step ``step`` on the next ``accumulation`` micro-batches.

    The loss is the mean over the micro-batches on this rank, so it does not depend on how the
    global batch is split. Gradients are averaged over ranks in the last micro-batch only.
    """
    parts, config, world = run.parts, run.config, run.world
    assert parts is not None and run.schedule is not None
    lr = run.schedule.lr(step)
    for group in parts.optimizer.param_groups:
        group["lr"] = lr
    seed_step(config.run.seed, step, world.rank)
    accumulation = config.batch.accumulation
    loss_sum = torch.zeros((), dtype=torch.float32, device=run.device)
    losses = []
    data_wait_s = 0.0
    for micro in range(accumulation):
        asked = time.perf_counter()
        batch = next(batches)
        data_wait_s += time.perf_counter() - asked
        images, labels = batch.images, batch.labels
        if parts.mixer is not None:
            micro_batch_id = (step * accumulation + micro) * world.world_size + world.rank
            images, labels = parts.mixer(images, labels, micro_batch_id)
        last = micro == accumulation - 1
        with nullcontext() if last or parts.ddp is None else parts.ddp.no_sync():
            with run.accelerator.autocast(config.precision.dtype):
                loss = parts.loss_fn(parts.stepped(images), labels)
            scaled = parts.scaler.scale(loss / accumulation)
            scaled.backward(poison(scaled))  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        loss_sum += loss.detach().float()
    _update(run, step, epoch, lr, tuple(losses), watch)
    return StepMetrics(
        step=step,
        epoch=epoch,
        lr=lr,
        loss=loss_sum / accumulation,
        num_images=config.batch.global_batch,
        data_wait_s=data_wait_s,
    )


def _update(
    run: Run, step: int, epoch: int, lr: float, losses: tuple[torch.Tensor, ...], watch: Watch
) -> None:
    parts = run.parts
    assert parts is not None
    applied: torch.Tensor | None = None
    scale = scale_tensor(parts.scaler)
    if scale is None:
        grads = [
            parameter.grad
            for group in parts.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # The 2-norm is the fastest look at every element: an eighth of the maximum's time on a CPU.
        watch.note(step, epoch, lr, losses, grad_norm=get_total_norm(grads))
        parts.optimizer.step()
    else:
        scale_before = scale.clone()
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        scale_after = scale_tensor(parts.scaler)
        assert scale_after is not None
        overflow = scale_after < scale_before
        applied = ~overflow
        watch.note(step, epoch, lr, losses, scale=scale_before, overflow=overflow)
    parts.optimizer.zero_grad(set_to_none=True)
    if parts.ema is not None:
        parts.ema.update(parts.model, applied)
