"""When training went on and how many images it took: what telemetry relates its samples to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkTotals:
    """Sums up to one moment. Times in seconds; images are the global batch's, of all ranks.

    training_s, images: of all work. measured_s, measured_images: of the part that the run's speed
    is of. steps_s: work up to the end of the last finished step, so that ``images / steps_s`` is a
    rate without the step under way.
    """

    training_s: float = 0.0
    measured_s: float = 0.0
    steps_s: float = 0.0
    images: int = 0
    measured_images: int = 0


class WorkLog:
    """Told by the loop that works, read by the thread that samples.

    Times are the host's: a GPU may end its queued work some steps later, and none of these calls
    waits for it.
    """

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self.changed = threading.Event()
        self._now_s = now_s
        self._lock = threading.Lock()
        self._since_s: float | None = None
        self._measured = False
        self._totals = WorkTotals()

    def begin(self, measured: bool) -> None:
        """Note that work begins. measured: the run's speed counts from here on."""
        self._turn(self._now_s(), measured)

    def measure(self) -> None:
        """Note that the warm-up is over; the work goes on."""
        self._turn(self._now_s(), True)

    def end(self) -> None:
        """Note that work stops: for validation, for saving, or for good. May be called twice."""
        self._turn(None, False)

    def note(self, images: int) -> None:
        """Note the end of a step over ``images`` images of all ranks."""
        with self._lock:
            now = self._at(self._now_s())
            self._totals = WorkTotals(
                self._totals.training_s,
                self._totals.measured_s,
                now.training_s,
                now.images + images,
                now.measured_images + (images if self._measured else 0),
            )

    def totals(self) -> WorkTotals:
        """Return the sums up to now, the step under way included in its time."""
        with self._lock:
            return self._at(self._now_s())

    @property
    def is_idle(self) -> bool:
        """Whether no work goes on."""
        return self._since_s is None

    def _turn(self, since_s: float | None, measured: bool) -> None:
        with self._lock:
            self._totals = self._at(self._now_s() if since_s is None else since_s)
            self._since_s, self._measured = since_s, measured
        self.changed.set()

    def _at(self, now_s: float) -> WorkTotals:
        if self._since_s is None:
            return self._totals
        t, gone_s = self._totals, now_s - self._since_s
        measured_s = t.measured_s + (gone_s if self._measured else 0.0)
        return WorkTotals(t.training_s + gone_s, measured_s, t.steps_s, t.images, t.measured_images)
