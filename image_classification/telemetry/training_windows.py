"""Time and images of a run's work, in total and within the measured window."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WindowTotals:
    """Sums up to one moment. Images are those of the global batch, over all ranks.

    training_s, images: of all work. measured_s, measured_images: of the measured window, which the
    reported images per second cover. steps_s: training time up to the end of the last finished
    step, so that ``images / steps_s`` excludes the step in progress.
    """

    training_s: float = 0.0
    measured_s: float = 0.0
    steps_s: float = 0.0
    images: int = 0
    measured_images: int = 0


class TrainingWindows:
    """Written by the training loop, read by the sampling thread.

    Times are host times: a GPU may finish queued work some steps later, and no call waits for it.
    """

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self.changed = threading.Event()
        self._now_s = now_s
        self._lock = threading.Lock()
        self._since_s: float | None = None
        self._measured = False
        self._totals = WindowTotals()

    def begin(self, measured: bool) -> None:
        """Start the work. measured: whether the measured window starts as well."""
        self._switch(self._now_s(), measured)

    def measure(self) -> None:
        """Start the measured window; the work continues."""
        self.begin(measured=True)

    def end(self) -> None:
        """Stop the work for validation, for saving, or finally. May be called twice."""
        self._switch(None, False)

    def note(self, images: int) -> None:
        """Record the end of a step over ``images`` images of all ranks."""
        with self._lock:
            now = self._at(self._now_s())
            self._totals = WindowTotals(
                self._totals.training_s,
                self._totals.measured_s,
                now.training_s,
                now.images + images,
                now.measured_images + (images if self._measured else 0),
            )

    def totals(self) -> WindowTotals:
        """Return the sums up to now; the times include the step in progress."""
        with self._lock:
            return self._at(self._now_s())

    @property
    def is_idle(self) -> bool:
        """Whether no work is in progress."""
        return self._since_s is None

    def _switch(self, since_s: float | None, measured: bool) -> None:
        with self._lock:
            self._totals = self._at(self._now_s() if since_s is None else since_s)
            self._since_s, self._measured = since_s, measured
        self.changed.set()

    def _at(self, now_s: float) -> WindowTotals:
        if self._since_s is None:
            return self._totals
        t, elapsed_s = self._totals, now_s - self._since_s
        measured_s = t.measured_s + (elapsed_s if self._measured else 0.0)
        training_s = t.training_s + elapsed_s
        return WindowTotals(training_s, measured_s, t.steps_s, t.images, t.measured_images)
