"""Stopping a run from outside: signals, agreed by all ranks at a step boundary.

The convergence criterion: a top-1 at whose first reaching the run ends.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from image_classification.core.errors import EXIT_STOPPED
from image_classification.engine.build import Run

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

Agree = Callable[[bool], bool]


class StopRequest:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C instead of dying of them.

    Used as a context manager around a run; the previous handlers come back on exit. Whether to
    stop is asked with `agreed`, which every rank calls at the same step boundary, so that a
    signal to any one rank stops all of them at one step.
    """

    def __init__(self, agree: Agree = bool) -> None:
        self._agree = agree
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self.signal_name: str | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any rank was asked to stop; the same answer on all ranks."""
        return self._agree(self.signal_name is not None)


class Stopped(Exception):
    """The run was asked to stop and has saved. Exit 75: start again to continue."""

    exit_code = EXIT_STOPPED


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
