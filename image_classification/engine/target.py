"""The convergence criterion: a top-1 at whose first reaching the run ends."""

from __future__ import annotations

from typing import Any

from image_classification.engine.build import Run


def reached(run: Run) -> bool:
    """Return whether a validation so far has come to ``run.stop_at_top1``; False without one."""
    wanted, best = run.config.run.stop_at_top1, run.progress.best_top1
    return wanted is not None and best is not None and best >= wanted


def target_result(run: Run) -> dict[str, Any] | None:
    """Return ``results.target``: when the top-1 was reached, null where it was not.

    epoch counts from 1, time_s from the run's first start. None where no top-1 was asked for.
    """
    wanted, progress = run.config.run.stop_at_top1, run.progress
    if wanted is None:
        return None
    if not reached(run) or progress.best_step is None:
        return {"stop_at_top1": wanted}
    assert run.train_loader is not None
    return {
        "stop_at_top1": wanted,
        "top1": progress.best_top1,
        "epoch": progress.best_step // run.train_loader.steps_per_epoch,
        "step": progress.best_step,
        "time_s": progress.best_elapsed_s,
    }
