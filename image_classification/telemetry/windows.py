"""When training went on and how many images it took: what telemetry relates its samples to.

From readings to figures: means, maxima and energy of one device over the run's work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from image_classification.telemetry.sensors import FIELDS, Reading, Sensor


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


# A clock held back by these makes a run slower than the device; a power cap is how many GPUs
# always run under load.
SLOWING = frozenset({"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"})

# Shorter, a counter's steps would look like peaks of power.
_SHORTEST_FOR_POWER_S = 0.3
_ENOUGH = 0.99
_EDGES_S = 0.1


@dataclass
class _Sums:
    """Over one kind of work. Times in seconds are how long each figure is known for."""

    energy_j: float = 0.0
    energy_s: float = 0.0
    power_w_max: float | None = None
    utilization_s: float = 0.0
    utilization_sum: float = 0.0
    clock_s: float = 0.0
    clock_sum: float = 0.0
    throttle_s: float = 0.0
    reasons_s: dict[str, float] = field(default_factory=dict)

    def add(
        self, share_s: float, power_w: float | None, peak_w: float | None, now: Reading
    ) -> None:
        if power_w is not None:
            self.energy_j += power_w * share_s
            self.energy_s += share_s
        if peak_w is not None:
            self.power_w_max = max(peak_w, self.power_w_max or 0.0)
        if now.utilization is not None:
            self.utilization_sum += now.utilization * share_s
            self.utilization_s += share_s
        if now.clock_mhz is not None:
            self.clock_sum += now.clock_mhz * share_s
            self.clock_s += share_s
        if now.throttle_reasons is not None:
            self.throttle_s += share_s
            for name in now.throttle_reasons:
                self.reasons_s[name] = self.reasons_s.get(name, 0.0) + share_s


@dataclass(frozen=True)
class Stretch:
    """What happened between two readings of a device: its mean power, and the later reading."""

    power_w: float | None
    reading: Reading


class DeviceTally:
    """Sums of one device, apart for all work and for the part the run's speed is of."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.samples = 0
        self.lost: str | None = None
        self._last: tuple[float, WorkTotals, Reading] | None = None
        self._training = _Sums()
        self._measured = _Sums()
        self._memory_peak_bytes: int | None = None
        self._temperature_c_max: float | None = None
        self._methods: set[str] = set()

    def take(self, now_s: float, totals: WorkTotals, now: Reading) -> Stretch | None:
        """Add a reading; return what it tells of the time since the last, None for the first."""
        self.samples += 1
        self._memory_peak_bytes = _larger(self._memory_peak_bytes, now.memory_bytes)
        self._temperature_c_max = _larger(self._temperature_c_max, now.temperature_c)
        last, self._last = self._last, (now_s, totals, now)
        if last is None or now_s <= last[0]:
            return None
        time_s = now_s - last[0]
        power_w = self._mean_power_w(last[2], now, time_s)
        peak_w = now.power_w
        if peak_w is None and time_s >= _SHORTEST_FOR_POWER_S:
            peak_w = power_w
        for sums, share_s in (
            (self._training, totals.training_s - last[1].training_s),
            (self._measured, totals.measured_s - last[1].measured_s),
        ):
            if share_s > 0:
                sums.add(share_s, power_w, peak_w, now)
        return Stretch(power_w, now)

    def _mean_power_w(self, last: Reading, now: Reading, time_s: float) -> float | None:
        if last.energy_j is not None and now.energy_j is not None:
            if now.energy_j < last.energy_j:  # the driver was loaded anew
                return None
            self._methods.add("counter")
            return (now.energy_j - last.energy_j) / time_s
        if last.power_w is not None and now.power_w is not None:
            self._methods.add("integral of power")
            return (last.power_w + now.power_w) / 2
        return None

    def figures(self, totals: WorkTotals) -> dict[str, Any]:
        """Return the device's entry of ``telemetry.devices``.

        Means and energy are None unless known for all of the work (but for a hundredth).
        """
        measured = totals.measured_s > 0
        sums = self._measured if measured else self._training
        window_s = totals.measured_s if measured else totals.training_s

        def whole(known_s: float) -> bool:
            return known_s > 0 and known_s >= _ENOUGH * window_s - _EDGES_S

        reasons = None
        if whole(sums.throttle_s):
            reasons = {name: s / sums.throttle_s for name, s in sorted(sums.reasons_s.items())}
        has_energy = whole(sums.energy_s)
        return {
            "name": self.sensor.name,
            "power_w_mean": sums.energy_j / sums.energy_s if has_energy else None,
            "power_w_max": sums.power_w_max,
            "energy_j": sums.energy_j if has_energy else None,
            "memory_peak_bytes": self._memory_peak_bytes,
            "utilization_mean": sums.utilization_sum / sums.utilization_s
            if whole(sums.utilization_s)
            else None,
            "temperature_c_max": self._temperature_c_max,
            "throttled": None if reasons is None else not SLOWING.isdisjoint(reasons),
            "throttle_reasons": reasons,
            "clock_mhz_mean": sums.clock_sum / sums.clock_s if whole(sums.clock_s) else None,
            "window_s": window_s or None,
            "samples": self.samples,
            "source": self._source(),
        }

    def _source(self) -> str:
        parts = [self.sensor.source] if self.sensor.source else []
        if self._methods:
            parts.append(f"energy: {' and '.join(sorted(self._methods))}")
        if self.lost is not None:
            parts.append(f"not read to the end: {self.lost}")
        reasons: dict[str, list[str]] = {}
        for name in FIELDS:
            # Where power is integrated, energy is not missing; where it is counted, nor is power.
            derived = bool(self._methods) and name in ("power_w", "energy_j")
            if name in self.sensor.missing and not derived:
                reasons.setdefault(self.sensor.missing[name], []).append(name)
        if reasons:
            named = (f"{', '.join(names)} ({why})" for why, names in reasons.items())
            parts.append(f"not measured: {', '.join(named)}")
        return "; ".join(parts)


def _larger(known: Any, new: Any) -> Any:
    if new is None:
        return known
    return new if known is None else max(known, new)
