"""Measure training speed: time per step, images per second, time spent waiting for data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from image_classification.devices.accelerator import Accelerator
from image_classification.telemetry.sampler import TrainingWindows


@dataclass
class StepSums:
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


class ThroughputMeter:
    """Marks each step on the device; converts marks to seconds at logging boundaries only.

    A segment runs from `begin` to the last step before evaluation or saving, so neither is part of
    a step's time. The first ``warmup_steps`` steps of the process (kernel selection, compilation,
    cold caches) are left out of ``measured``, which the report's speed is computed from.

    total: all steps. epoch: those since `end_epoch`.
    """

    def __init__(self, accelerator: Accelerator, warmup_steps: int, work: TrainingWindows) -> None:
        self.work = work
        self.total = StepSums()
        self.measured = StepSums()
        self.epoch = StepSums()
        self.first_step_s: float | None = None
        self._accelerator = accelerator
        self._warmup_steps = warmup_steps
        self._measured_times_s: list[float] = []
        self._marks: list[Any] = []
        self._unread: list[tuple[int, float]] = []

    def begin(self) -> None:
        """Start a segment; the time since the last step belongs to no step."""
        self.flush()
        self._marks = [self._accelerator.mark()]
        self.work.begin(measured=self.total.steps >= self._warmup_steps)

    def pause(self) -> None:
        """End a segment; what follows until the next `begin` is not training."""
        self.flush()
        self.work.end()

    def step(self, images: int, data_wait_s: float) -> None:
        """Mark the end of an optimizer step over ``images`` images of all ranks."""
        self._marks.append(self._accelerator.mark())
        self._unread.append((images, data_wait_s))
        self.work.note(images)
        if self.total.steps + len(self._unread) == self._warmup_steps:
            self.work.measure()

    def flush(self) -> StepSums:
        """Wait for the marked work and return the sums since the last flush."""
        flushed = StepSums()
        for i, (images, wait_s) in enumerate(self._unread):
            time_s = self._accelerator.elapsed_s(self._marks[i], self._marks[i + 1])
            if self.first_step_s is None:
                self.first_step_s = time_s
            all_sums = [flushed, self.epoch, self.total]
            if self.total.steps >= self._warmup_steps:
                all_sums.append(self.measured)
                self._measured_times_s.append(time_s)
            for sums in all_sums:
                sums.steps += 1
                sums.images += images
                sums.time_s += time_s
                # The host fetches micro-batches while the device still computes, so its wait can
                # exceed the device's step time.
                sums.data_wait_s += min(wait_s, time_s)
        self._marks = self._marks[-1:]
        self._unread = []
        return flushed

    def end_epoch(self) -> StepSums:
        """End the segment; return the epoch's sums and start new ones."""
        self.pause()
        epoch, self.epoch = self.epoch, StepSums()
        return epoch

    def results(self, world_size: int, epochs: float) -> dict[str, Any]:
        """Return ``results.train`` of the report; what was not measured is None."""
        measured = self.measured
        rate = measured.images_per_s
        return {
            "images_per_s": rate,
            "images_per_s_per_device": rate / world_size if rate is not None else None,
            "step_time_s": {
                **percentiles(self._measured_times_s, (50, 95, 99)),
                "histogram": histogram(self._measured_times_s),
            },
            "data_wait_fraction": measured.data_wait_s / measured.time_s if rate else None,
            "epochs": epochs,
            "steps": self.total.steps,
            "images": self.total.images,
        }


def percentiles(values: Sequence[float], which: Sequence[int]) -> dict[str, float | None]:
    """Return ``{"p50": …}`` by linear interpolation; None for each when there are no values."""
    if not values:
        return {f"p{q}": None for q in which}
    return {f"p{q}": float(np.percentile(values, q)) for q in which}


_CUTOFF_MEDIANS = 3.0
"""Longer times are counted in the last bin; as limits, they would put all others into one."""


def histogram(times_s: Sequence[float]) -> dict[str, Any] | None:
    """Return a histogram of at most 40 equal bins; None for fewer than 3 times.

    low_s, high_s: its limits. counts: times in each bin; longer times are in the last one.
    longest_s: the longest time.
    """
    if len(times_s) < 3:
        return None
    low, longest = min(times_s), max(times_s)
    high = min(longest, _CUTOFF_MEDIANS * float(np.median(times_s)))
    if high <= low:
        low, high = 0.95 * low, 1.05 * low
    bins = max(5, min(40, round(2 * len(times_s) ** 0.5)))
    counts, _ = np.histogram(np.minimum(times_s, high), bins, (low, high))
    return {"low_s": low, "high_s": high, "counts": counts.tolist(), "longest_s": longest}


def time_results(
    total_s: float,
    train_s: float | None = None,
    validation_s: float | None = None,
    first_step_s: float | None = None,
) -> dict[str, float | None]:
    """Return ``results.time_s`` of the report; None for what the run did not do."""
    return {
        "total": total_s,
        "train": train_s,
        "validation": validation_s,
        "first_step": first_step_s,
    }
