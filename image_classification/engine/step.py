"""One optimizer step: accumulate micro-batches, update, move the average. Nothing waits here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from image_classification.core.types import Batch, StepMetrics
from image_classification.engine.build import Run


@dataclass
class Watch:
    """Device-side notes on the run's health, read by the host at logging boundaries only.

    first_bad_step: int64, the first step with a non-finite loss on this rank, -1 for none.
    skipped: int64, fp16 overflows so far; skipped_in_a_row: the present streak.
    """

    first_bad_step: torch.Tensor
    skipped: torch.Tensor
    skipped_in_a_row: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, skipped: int = 0) -> Watch:
        """Start watching on ``device``."""
        return cls(
            torch.full((), -1, dtype=torch.int64, device=device),
            torch.full((), skipped, dtype=torch.int64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )


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
            parts.scaler.scale(loss / accumulation).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach().float()
    loss_mean = loss_sum / accumulation
    _update(run, loss_mean, step, watch)
    return StepMetrics(
        step=step,
        epoch=epoch,
        lr=lr,
        loss=loss_mean,
        num_images=config.batch.global_batch,
        data_wait_s=data_wait_s,
    )


def _update(run: Run, loss: torch.Tensor, step: int, watch: Watch) -> None:
    parts = run.parts
    assert parts is not None
    scale = scale_tensor(parts.scaler)
    scale_before = scale.clone() if scale is not None else None
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    finite = torch.isfinite(loss)
    if scale_before is not None:
        scale_after = scale_tensor(parts.scaler)
        assert scale_after is not None
        overflow = scale_after < scale_before
        watch.skipped += overflow
        watch.skipped_in_a_row.add_(1).mul_(overflow)
        applied: torch.Tensor | None = ~overflow
        # An overflow may show in the loss as well; it costs that step, not the run.
        finite = finite | overflow
    else:
        applied = None
    watch.first_bad_step.copy_(
        torch.where(
            (watch.first_bad_step < 0) & ~finite,
            torch.full_like(watch.first_bad_step, step),
            watch.first_bad_step,
        )
    )
    if parts.ema is not None:
        parts.ema.update(parts.model, applied)
