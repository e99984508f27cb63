"""Means, maxima and energy of one device, accumulated from its readings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from image_classification.telemetry.sensors import FIELDS, Reading, Sensor
from image_classification.telemetry.training_windows import WindowTotals

# With these, heat or the hardware holds the clock back. Most GPUs always run at their power cap
# under load, so a power cap is not counted as throttling.
THROTTLING = frozenset({"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"})

# Over shorter intervals, the increments of an energy counter would look like peaks of power.
_MIN_POWER_INTERVAL_S = 0.3
# A mean is reported if it is known for this share of the window, give or take its edges.
_KNOWN_SHARE = 0.99
_WINDOW_EDGES_S = 0.1


class Accumulator:
    """Time-weighted sums and maxima of named values; None values are left out.

    sums: name -> sum of value × seconds. known_s: name -> seconds the value is known for.
    """

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.known_s: defaultdict[str, float] = defaultdict(float)
        self.maxima: dict[str, Any] = {}

    def add(self, time_s: float, values: Mapping[str, float | None]) -> None:
        """Add values that hold for ``time_s`` seconds."""
        for name, value in values.items():
            if value is not None:
                self.sums[name] += value * time_s
                self.known_s[name] += time_s
                self.maxima[name] = max(value, self.maxima.get(name, value))

    def mean(self, name: str) -> float | None:
        """Return the mean over the time the value is known for; None if it is never known."""
        known_s = self.known_s[name]
        return self.sums[name] / known_s if known_s > 0 else None


class DeviceStats:
    """Figures of one device.

    They are accumulated separately for all training, for the measured window, and for the span of
    the next ``telemetry`` record. lost: why the device is no longer read; None while it is.
    """

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.span = Accumulator()
        self.samples = 0
        self.misses_in_a_row = 0
        self.lost: str | None = None
        self._last: tuple[float, WindowTotals, Reading] | None = None
        self._run = Accumulator()
        self._training = Accumulator()
        self._measured = Accumulator()
        self._energy_methods: set[str] = set()

    def add(self, now_s: float, totals: WindowTotals, now: Reading, span_s: float) -> None:
        """Add a reading. span_s: seconds it adds to the span of the next record."""
        self.samples += 1
        state = {"memory_bytes": now.memory_bytes, "temperature_c": now.temperature_c}
        self._run.add(0.0, state)
        last, self._last = self._last, (now_s, totals, now)
        if last is None or now_s <= last[0]:
            return
        time_s = now_s - last[0]
        power_w = self._mean_power_w(last[2], now, time_s)
        peak_w = now.power_w
        if peak_w is None and time_s >= _MIN_POWER_INTERVAL_S:
            peak_w = power_w
        values: dict[str, float | None] = {
            **state,
            "power_w": power_w,
            "peak_power_w": peak_w,
            "utilization": now.utilization,
            "clock_mhz": now.clock_mhz,
            "throttle_reasons": None if now.throttle_reasons is None else 0.0,
            **{f"throttle:{name}": 1.0 for name in now.throttle_reasons or ()},
        }
        for accumulator, share_s in (
            (self._training, totals.training_s - last[1].training_s),
            (self._measured, totals.measured_s - last[1].measured_s),
            (self.span, span_s),
        ):
            if share_s > 0:
                accumulator.add(share_s, values)

    def _mean_power_w(self, last: Reading, now: Reading, time_s: float) -> float | None:
        if last.energy_j is not None and now.energy_j is not None:
            if now.energy_j < last.energy_j:  # the driver was reloaded
                return None
            self._energy_methods.add("counter")
            return (now.energy_j - last.energy_j) / time_s
        if last.power_w is not None and now.power_w is not None:
            self._energy_methods.add("integral of power")
            return (last.power_w + now.power_w) / 2
        return None

    def figures(self, totals: WindowTotals) -> dict[str, Any]:
        """Return the device's entry of ``telemetry.devices`` in the report.

        Means and energy are None unless they are known for (nearly) the whole window.
        """
        stats, window_s = self._training, totals.training_s
        if totals.measured_s > 0:
            stats, window_s = self._measured, totals.measured_s

        def mean(name: str) -> float | None:
            is_known = stats.known_s[name] >= _KNOWN_SHARE * window_s - _WINDOW_EDGES_S
            return stats.mean(name) if is_known else None

        power_w = mean("power_w")
        reasons = None
        if mean("throttle_reasons") is not None:
            prefix, sampled_s = "throttle:", stats.known_s["throttle_reasons"]
            reasons = {
                name.removeprefix(prefix): known_s / sampled_s
                for name, known_s in sorted(stats.known_s.items())
                if name.startswith(prefix)
            }
        return {
            "name": self.sensor.name,
            "power_w_mean": power_w,
            "power_w_max": stats.maxima.get("peak_power_w"),
            "energy_j": None if power_w is None else stats.sums["power_w"],
            "memory_peak_bytes": self._run.maxima.get("memory_bytes"),
            "utilization_mean": mean("utilization"),
            "temperature_c_max": self._run.maxima.get("temperature_c"),
            "throttled": None if reasons is None else not THROTTLING.isdisjoint(reasons),
            "throttle_reasons": reasons,
            "clock_mhz_mean": mean("clock_mhz"),
            "window_s": window_s or None,
            "samples": self.samples,
            "source": self._source(),
        }

    def _source(self) -> str:
        parts = [self.sensor.source] if self.sensor.source else []
        if self._energy_methods:
            parts.append(f"energy: {' and '.join(sorted(self._energy_methods))}")
        if self.lost is not None:
            parts.append(f"not read to the end: {self.lost}")
        fields_by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for name in FIELDS:
            # Energy is derived from power, or power from energy.
            is_derived = bool(self._energy_methods) and name in ("power_w", "energy_j")
            if name in self.sensor.missing and not is_derived:
                fields_by_reason[self.sensor.missing[name]].append(name)
        if fields_by_reason:
            missing = (f"{', '.join(names)} ({why})" for why, names in fields_by_reason.items())
            parts.append(f"not measured: {', '.join(missing)}")
        return "; ".join(parts)
