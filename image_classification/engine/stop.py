"""End a run early: stop signals, ``run.stop_at_top1`` and early-stopping patience."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from image_classification.core.errors import EXIT_STOPPED
from image_classification.core.types import Activity
from image_classification.engine.runs import TrainingRun

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop. Exit code 75; a training run has saved and can be resumed."""

    exit_code = EXIT_STOPPED


class StopRequest:
    """Records SIGTERM, SIGUSR1 and Ctrl-C instead of letting them end the process.

    A context manager around a run; the previous handlers are restored on exit. Python lets only the
    main thread handle signals: in another one it does nothing.
    any_rank: returns whether any rank's flag is set, the same answer on all ranks. activity: to
    note the signal in, for the live view.
    """

    def __init__(
        self, any_rank: Callable[[bool], bool] = bool, activity: Activity | None = None
    ) -> None:
        self._any_rank = any_rank
        self._activity = activity or Activity()
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self.signal_name: str | None = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self._activity.stopping = signal.Signals(number).name

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._on_signal) for n in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Stopped` if any rank was asked to stop.

        Every rank calls this at the same step boundary, so that all stop at the same step.
        """
        if self.requested():
            raise self.stopped()

    def requested(self) -> bool:
        """Return whether any rank was asked to stop; called as `check`."""
        return self._any_rank(self.signal_name is not None)

    def stopped(self) -> Stopped:
        """Return the exception to raise once `requested` returned True."""
        return Stopped(self.signal_name or "another rank's signal")


def should_end(run: TrainingRun) -> bool:
    """Return whether the validations so far end the run (``run.stop_at_top1``, patience)."""
    patience = run.config.run.early_stopping_patience
    out_of_patience = patience is not None and run.progress.validations_without_gain >= patience
    return out_of_patience or _reached_top1(run)


def _reached_top1(run: TrainingRun) -> bool:
    target, best = run.config.run.stop_at_top1, run.progress.best_top1
    return target is not None and best is not None and best >= target


def target_result(run: TrainingRun) -> dict[str, Any] | None:
    """Return ``results.target``: when ``run.stop_at_top1`` was reached; None without that setting.

    epoch counts from 1, time_s from the run's first start.
    """
    target, progress = run.config.run.stop_at_top1, run.progress
    if target is None:
        return None
    if not _reached_top1(run) or progress.best_step is None:
        return {"stop_at_top1": target}
    return {
        "stop_at_top1": target,
        "top1": progress.best_top1,
        "epoch": progress.best_step // run.steps_per_epoch,
        "step": progress.best_step,
        "time_s": progress.best_elapsed_s,
    }
