"""Where the time of a training run went, in the shape the report wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from image_classification.telemetry.training_windows import TrainingWindows


class Clock(Protocol):
    """The two timing calls of an accelerator (see `hardware.accelerator.Accelerator`)."""

    def mark(self) -> Any:
        """Mark this point of the device's work without waiting for it."""
        ...

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Seconds between two marks; waits for the later one."""
        ...


@dataclass
class Window:
    """Sums over some optimizer steps. Times in seconds."""

    steps: int = 0
    images: int = 0
    time_s: float = 0.0
    data_wait_s: float = 0.0

    @property
    def images_per_s(self) -> float | None:
        """Images over wall time, data wait included; None before any step."""
        return self.images / self.time_s if self.time_s > 0 else None

    @property
    def compute_images_per_s(self) -> float | None:
        """Images over the time not spent waiting for data."""
        compute_s = self.time_s - self.data_wait_s
        return self.images / compute_s if compute_s > 0 else None


@dataclass
class TrainMeter:
    """Collects one mark a step; turns marks into seconds only at logging boundaries.

    A segment runs from `begin` to the last step before evaluation or saving, so neither is ever
    part of a step's time. The first ``warmup_steps`` steps of the process (kernel selection,
    compilation, cold caches) are left out of the measured window, as the report says.
    """

    clock: Clock
    warmup_steps: int
    work: TrainingWindows = field(default_factory=TrainingWindows)
    measured: Window = field(default_factory=Window)
    epoch: Window = field(default_factory=Window)
    step_time_s: list[float] = field(default_factory=list)
    first_step_s: float | None = None
    total_images: int = 0
    total_steps: int = 0
    train_time_s: float = 0.0
    _marks: list[Any] = field(default_factory=list)
    _pending: list[tuple[int, float]] = field(default_factory=list)

    def begin(self) -> None:
        """Start a segment: the time since the last step is not a step's."""
        self.flush()
        self._marks = [self.clock.mark()]
        self.work.begin(measured=self.total_steps >= self.warmup_steps)

    def pause(self) -> None:
        """End a segment: what comes before the next `begin` is not training."""
        self.flush()
        self.work.end()

    def step(self, images: int, data_wait_s: float) -> None:
        """Note the end of an optimizer step over ``images`` images of all ranks."""
        self._marks.append(self.clock.mark())
        self._pending.append((images, data_wait_s))
        self.work.note(images)
        if self.total_steps + len(self._pending) == self.warmup_steps:
            self.work.measure()

    def flush(self) -> Window:
        """Wait for the marked work and return the sums since the last flush."""
        window = Window()
        for i, (images, wait_s) in enumerate(self._pending):
            time_s = self.clock.elapsed_s(self._marks[i], self._marks[i + 1])
            if self.first_step_s is None:
                self.first_step_s = time_s
            windows = [window, self.epoch]
            if self.total_steps >= self.warmup_steps:
                windows.append(self.measured)
                self.step_time_s.append(time_s)
            for w in windows:
                w.steps += 1
                w.images += images
                w.time_s += time_s
                # Several micro-batches are fetched while the device still computes: the host's
                # wait can exceed the device's step only by what it was ahead.
                w.data_wait_s += min(wait_s, time_s)
            self.total_steps += 1
            self.total_images += images
            self.train_time_s += time_s
        self._marks = self._marks[-1:]
        self._pending = []
        return window

    def end_epoch(self) -> Window:
        """Close the epoch's window and return it."""
        self.pause()
        window, self.epoch = self.epoch, Window()
        return window

    def results(self, world_size: int, epochs: float) -> dict[str, Any]:
        """``results.train`` of the report; what was not measured is None."""
        m = self.measured
        rate = m.images_per_s
        return {
            "images_per_s": rate,
            "images_per_s_per_device": rate / world_size if rate is not None else None,
            "step_time_s": percentiles(self.step_time_s, (50, 95, 99)),
            "data_wait_fraction": m.data_wait_s / m.time_s if m.time_s > 0 else None,
            "epochs": epochs,
            "steps": self.total_steps,
            "images": self.total_images,
        }


def percentiles(values: Sequence[float], which: Sequence[int]) -> dict[str, float | None]:
    """``{"p50": …}`` by linear interpolation; None for each when there are no values."""
    if not values:
        return {f"p{q}": None for q in which}
    found = np.percentile(np.asarray(values, dtype=np.float64), which)
    return {f"p{q}": float(v) for q, v in zip(which, found, strict=True)}
