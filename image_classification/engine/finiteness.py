"""Detect divergence: non-finite losses and gradients, and too many fp16 overflows in a row.

All ranks reach the same verdict at the same step without communication. Gradients are averaged
over ranks before they are checked, so a value that is not finite on one rank is not finite on any,
and `precision.initial_gradient` makes the gradients of a non-finite loss non-finite.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch

from image_classification.core.errors import DivergedError, WorkspaceError
from image_classification.core.files import write_atomically
from image_classification.data.order import TrainOrder
from image_classification.devices.async_readback import Readback
from image_classification.distributed.collectives import gather_text
from image_classification.engine.runs import TrainingRun

DIVERGENCE_FILE = "diverged.json"


@dataclass(frozen=True)
class StepCheck:
    """The check of one step.

    step: optimizer updates done before it. losses: of this rank's micro-batches, 0-d, on the
    device. scale: loss scale of the step. verdict: ``[3]`` int64: 1 where the gradients are not
    finite; fp16 overflows so far; fp16 overflows in a row. overflows: fp16 overflows in a row,
    if they end the run; otherwise 0.
    """

    step: int
    epoch: int
    lr: float
    losses: tuple[torch.Tensor, ...]
    scale: torch.Tensor | None
    verdict: Readback
    overflows: int = 0


class FinitenessMonitor:
    """Checks each step on the device and reads the result once the host need not wait for it.

    On a GPU a step is read after the next one was queued, so that the device always has work; on a
    CPU at once. max_in_a_row: this many fp16 overflows in a row end the run. skipped: fp16
    overflows so far, up to the last step read.
    """

    def __init__(self, device: torch.device, max_in_a_row: int, skipped: int = 0) -> None:
        self.skipped = skipped
        self._max_in_a_row = max_in_a_row
        self._delay_steps = 1 if device.type == "cuda" else 0
        self._unread: deque[StepCheck] = deque()
        self._finite = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.full((), skipped, dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def record(
        self,
        step: int,
        epoch: int,
        lr: float,
        losses: tuple[torch.Tensor, ...],
        grad_norm: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        overflow: torch.Tensor | None = None,
    ) -> None:
        """Queue the check of a step; see `StepCheck`.

        grad_norm: 0-d, over all parameters and ranks. With a loss scaler instead: scale, and
        overflow (0-d bool: the scaler skipped the update).
        """
        bad = self._finite
        if grad_norm is not None:
            bad = (~torch.isfinite(grad_norm)).to(torch.int64)
        if overflow is not None:
            self._skipped += overflow
            self._in_a_row.add_(1).mul_(overflow)
        verdict = Readback(torch.stack([bad, self._skipped, self._in_a_row]))
        self._unread.append(StepCheck(step, epoch, lr, losses, scale, verdict))

    def divergence(self, all_steps: bool = False) -> StepCheck | None:
        """Read the checks that are ready; with all_steps, wait for all of them.

        Returns the first step the run cannot continue from, the same on every rank.
        """
        delay_steps = 0 if all_steps else self._delay_steps
        while len(self._unread) > delay_steps:
            check = self._unread.popleft()
            bad, self.skipped, in_a_row = check.verdict.wait().tolist()
            if bad:
                return check
            if in_a_row >= self._max_in_a_row:
                return replace(check, overflows=in_a_row)
        return None


def report_divergence(run: TrainingRun, check: StepCheck) -> DivergedError:
    """Write ``diverged.json`` from what all ranks know and return the error to raise.

    Every rank calls this. The file holds: step (optimizer updates done before the bad one, as
    checkpoints count), epoch and epoch_step (from 0), learning_rate, loss_scale (null: none),
    reason (``loss``, ``gradient`` or ``overflows``), overflows_in_a_row, bad_ranks (those whose
    loss is not finite; ``"unknown"`` where only the averaged gradients were not), and ranks: for
    each its loss and its micro-batches, with the loss and the samples (index and name) of each. A
    non-finite loss is the string ``nan``, ``inf`` or ``-inf``.
    """
    world_size = run.world.world_size
    ranks = [json.loads(text) for text in gather_text(json.dumps(_rank_entry(run, check)))]
    bad = [rank["rank"] for rank in ranks if isinstance(rank["loss"], str)]
    reason = "overflows" if check.overflows else "loss" if bad else "gradient"
    content = {
        "step": check.step,
        "epoch": check.epoch,
        "epoch_step": check.step % run.steps_per_epoch,
        "learning_rate": check.lr,
        "loss_scale": None if check.scale is None else float(check.scale),
        "reason": reason,
        "overflows_in_a_row": check.overflows,
        "bad_ranks": bad or ([0] if world_size == 1 else "unknown"),
        "world_size": world_size,
        "global_batch": run.config.batch.global_batch,
        "ranks": ranks,
    }
    if reason == "overflows":
        message = (
            f"{check.overflows} fp16 overflows in a row up to step {check.step} "
            f"(run.max_skipped_steps_in_a_row {run.config.run.max_skipped_steps_in_a_row})"
        )
    else:
        where = ""
        if world_size > 1:
            where = f" on rank {', '.join(map(str, bad))}" if bad else " on an unknown rank"
        message = (
            f"{reason} is not finite at step {check.step}{where} (learning rate {check.lr:.6g})"
        )
    if run.world.rank == 0:
        path = run.workspace / DIVERGENCE_FILE
        try:
            write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
            message += f"; its images are listed in {path}"
        except WorkspaceError as error:
            # Report the divergence, and in addition why the file could not be written.
            message += f"; {error.message}"
    return DivergedError(message, step=check.step)


def _rank_entry(run: TrainingRun, check: StepCheck) -> dict[str, Any]:
    config, loader = run.config, run.train_loader
    order = TrainOrder(
        num_images=loader.num_images,
        per_device_batch=config.batch.per_device_batch,
        accumulation=config.batch.accumulation,
        rank=run.world.rank,
        world_size=run.world.world_size,
        seed=config.run.seed,
    )
    batches = order.batches(check.epoch, check.step % loader.steps_per_epoch)
    losses = [float(loss) for loss in check.losses]
    micro_batches = [
        {
            "loss": _json_number(loss),
            "samples": [{"index": i, "name": loader.sample_name(i)} for i in batch.tolist()],
        }
        for loss, batch in zip(losses, batches[: len(losses)], strict=True)
    ]
    mean = _json_number(sum(losses) / len(losses))
    return {"rank": run.world.rank, "loss": mean, "micro_batches": micro_batches}


def _json_number(loss: float) -> float | str:
    # JSON has no NaN and no infinity.
    return loss if math.isfinite(loss) else str(loss)
