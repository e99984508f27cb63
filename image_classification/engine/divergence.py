"""What is known of the step a run broke down at: ``diverged.json`` in its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from image_classification.core.errors import DivergedError, WorkspaceError
from image_classification.core.files import write_atomically
from image_classification.data.order import TrainPlan
from image_classification.distributed.host_collectives import gather_text
from image_classification.engine.build import Run
from image_classification.engine.finiteness import Trouble

FILE = "diverged.json"


def diverged(run: Run, trouble: Trouble) -> DivergedError:
    """Gather what every rank knows, write it from rank 0 and return the error to raise.

    Every rank calls this. The file holds: step (optimizer updates done before the bad one, as
    checkpoints count), epoch and epoch_step (from 0), learning_rate, loss_scale (null: none),
    reason (``loss``, ``gradient`` or ``overflows``), overflows_in_a_row, bad_ranks (those whose
    loss is not finite; ``"unknown"`` where only averaged gradients were not), and ranks: of each,
    its loss and its micro-batches, with the loss and the samples (index and name) of each. A loss
    that is not finite is the string ``nan``, ``inf`` or ``-inf``.
    """
    note = trouble.note
    told = [json.loads(text) for text in gather_text(json.dumps(_own_part(run, trouble)))]
    bad = [rank["rank"] for rank in told if isinstance(rank["loss"], str)]
    reason = "overflows" if trouble.overflows else "loss" if bad else "gradient"
    origin: list[int] | str = bad
    if not bad:
        origin = [0] if run.world.world_size == 1 else "unknown"
    assert run.train_loader is not None
    content = {
        "step": note.step,
        "epoch": note.epoch,
        "epoch_step": note.step % run.train_loader.steps_per_epoch,
        "learning_rate": note.lr,
        "loss_scale": None if note.scale is None else float(note.scale),
        "reason": reason,
        "overflows_in_a_row": trouble.overflows,
        "bad_ranks": origin,
        "world_size": run.world.world_size,
        "global_batch": run.config.batch.global_batch,
        "ranks": told,
    }
    where = _write(run, content) if run.world.rank == 0 else ""
    return DivergedError(f"{_first_words(trouble, reason, bad, run)}{where}", step=note.step)


def _own_part(run: Run, trouble: Trouble) -> dict[str, Any]:
    config, loader, note = run.config, run.train_loader, trouble.note
    assert loader is not None
    plan = TrainPlan(
        num_images=loader.num_images,
        per_device_batch=config.batch.per_device_batch,
        accumulation=config.batch.accumulation,
        rank=run.world.rank,
        world_size=run.world.world_size,
        seed=config.run.seed,
    )
    batches = plan.batches(note.epoch, note.step % loader.steps_per_epoch)
    losses = [float(loss) for loss in note.losses]
    return {
        "rank": run.world.rank,
        "loss": _plain(sum(losses) / len(losses)),
        "micro_batches": [
            {
                "loss": _plain(loss),
                "samples": [{"index": i, "name": loader.sample_name(i)} for i in batch.tolist()],
            }
            for loss, batch in zip(losses, batches[: len(losses)], strict=True)
        ],
    }


def _plain(loss: float) -> float | str:
    # JSON has no NaN and no infinity.
    return loss if math.isfinite(loss) else str(loss)


def _first_words(trouble: Trouble, reason: str, bad: list[int], run: Run) -> str:
    note = trouble.note
    if reason == "overflows":
        return (
            f"{trouble.overflows} fp16 overflows in a row up to step {note.step} "
            f"(run.max_skipped_steps_in_a_row {run.config.run.max_skipped_steps_in_a_row})"
        )
    ranks = ""
    if run.world.world_size > 1:
        ranks = f" on rank {', '.join(map(str, bad))}" if bad else " on a rank unknown"
    return f"{reason} is not finite at step {note.step}{ranks} (learning rate {note.lr:.6g})"


def _write(run: Run, content: dict[str, Any]) -> str:
    """Write the file; return what the error says of it."""
    path: Path = run.workspace / FILE
    try:
        write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except WorkspaceError as error:
        # The divergence is the news; that it could not be written down comes second.
        return f"; {error.message}"
    return f"; its images are listed in {path}"
