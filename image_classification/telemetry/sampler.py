"""The sampling thread of a node: its devices' figures over the run and over the measured window."""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from image_classification.telemetry.sensors import (
    FIELDS,
    DeviceLostError,
    Reading,
    ReadingFailedError,
    Sensor,
)

# With these, heat or the hardware holds the clock back. Most GPUs always run at their power cap
# under load, so a power cap is not counted as throttling.
THROTTLING = frozenset({"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"})

PERIOD_S = 1.0
# Share of one core's time. Samples that cost more are taken less often.
_MAX_COST_SHARE = 0.004
_MIN_PERIOD_S = 0.1
# Over shorter intervals, the increments of an energy counter would look like peaks of power.
_MIN_POWER_INTERVAL_S = 0.3
# A mean is reported if it is known for this share of the window, give or take its edges.
_KNOWN_SHARE = 0.99
_WINDOW_EDGES_S = 0.1
# A record spans a hundredth of the time so far, so a long run writes some thousands of them.
_RECORD_SHARE = 0.01
_MAX_SPAN_S = 60.0
# Only rank 0 takes the records; on the other nodes they would accumulate.
_MAX_RECORDS = 10_000
_MAX_MISSES_IN_A_ROW = 10
_JOIN_TIMEOUT_S = 5.0


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
    """Time and images of a run's work. Written by the training loop, read by the sampling thread.

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
            self._totals = replace(
                self._totals,
                steps_s=self._at(self._now_s()).training_s,
                images=self._totals.images + images,
                measured_images=self._totals.measured_images + (images if self._measured else 0),
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
        totals = self._totals
        if self._since_s is None:
            return totals
        elapsed_s = now_s - self._since_s
        measured_s = totals.measured_s + (elapsed_s if self._measured else 0.0)
        return replace(totals, training_s=totals.training_s + elapsed_s, measured_s=measured_s)


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
    """Figures of one device, separately for all training and for the measured window.

    lost: why the device is no longer read; None while it is.
    """

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.samples = 0
        self.misses_in_a_row = 0
        self.lost: str | None = None
        self._last: tuple[float, WindowTotals, Reading] | None = None
        self._run = Accumulator()
        self._training = Accumulator()
        self._measured = Accumulator()
        self._energy_methods: set[str] = set()

    def add(self, now_s: float, totals: WindowTotals, now: Reading) -> dict[str, float | None]:
        """Add a reading; return the values that hold since the last one."""
        self.samples += 1
        state = {"memory_bytes": now.memory_bytes, "temperature_c": now.temperature_c}
        self._run.add(0.0, state)
        last, self._last = self._last, (now_s, totals, now)
        if last is None or now_s <= last[0]:
            return {}
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
        training_s = totals.training_s - last[1].training_s
        measured_s = totals.measured_s - last[1].measured_s
        if training_s > 0:
            self._training.add(training_s, values)
        if measured_s > 0:
            self._measured.add(measured_s, values)
        return values

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


class Sampler:
    """Samples in its own thread from `start` to `stop`; never raises an exception into the run.

    A device that stops responding is no longer read; its figures say why. cost_s: processor time
    of ``samples`` samples.
    """

    def __init__(
        self, sensors: Sequence[Sensor], windows: TrainingWindows, period_s: float = PERIOD_S
    ) -> None:
        self.cost_s = 0.0
        self.samples = 0
        self._devices = [DeviceStats(sensor) for sensor in sensors]
        self._windows = windows
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._recent_costs_s: deque[float] = deque(maxlen=5)
        self._records: deque[dict[str, Any]] = deque(maxlen=_MAX_RECORDS)
        self._begun_s = self._last_s = self._span_begun_s = time.perf_counter()
        # Over all devices, since the last record.
        self._span = Accumulator()
        self._span_totals = WindowTotals()

    def start(self) -> None:
        """Take the first sample before the run goes on, and start the thread."""
        self.sample()
        # A daemon, so that a driver that hangs does not keep a finished run alive.
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample and end the thread. May be called twice."""
        self._windows.end()
        self._stopping.set()
        self._windows.changed.set()
        if self._thread is None:
            return
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            for device in self._devices:
                device.lost = device.lost or f"no answer within {_JOIN_TIMEOUT_S:g} s"
        self._thread = None

    def take_records(self) -> list[dict[str, Any]]:
        """Return the values of the ``telemetry`` records since the last call."""
        return [self._records.popleft() for _ in range(len(self._records))]

    def trouble(self) -> str | None:
        """Return one line on the devices that should be readable but are not; None if all are."""
        counts: dict[str, int] = {}
        for device in self._devices:
            sensor = device.sensor
            why = device.lost or ("" if sensor.source else next(iter(sensor.missing.values()), ""))
            if sensor.expected and why:
                counts[why] = counts.get(why, 0) + 1
        if not counts:
            return None
        reasons = ", ".join(f"{why} ({n} of {len(self._devices)})" for why, n in counts.items())
        return f"power and utilization are not measured to the end: {reasons}"

    def figures(self) -> dict[str, Any]:
        """Return the devices' figures, the images of their window, and its name; after `stop`."""
        totals = self._windows.totals()
        measured = totals.measured_s > 0
        return {
            "devices": [device.figures(totals) for device in self._devices],
            "images": totals.measured_images if measured else totals.images,
            "window": "measured" if measured else "training" if totals.training_s > 0 else None,
        }

    def _run(self) -> None:
        # Signals must reach the main thread, which may be blocked in a call that they interrupt.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._stopping.is_set():
            cost_s = median(self._recent_costs_s) if self._recent_costs_s else 0.0
            min_period_s = max(_MIN_PERIOD_S, cost_s / _MAX_COST_SHARE)
            self._stopping.wait(max(0.0, self._last_s + min_period_s - time.perf_counter()))
            due_s = self._last_s + max(self._period_s, min_period_s)
            # Where a window begins or ends, an extra sample separates the two sides.
            self._windows.changed.wait(max(0.0, due_s - time.perf_counter()))
            self._windows.changed.clear()
            if not self._stopping.is_set():
                self.sample()
        self.sample()
        for device in self._devices:
            device.sensor.close()

    def sample(self) -> None:
        """Read every device once. Called by the thread, and by benchmarks."""
        begun_s = time.thread_time()
        before_s, self._last_s = self._last_s, time.perf_counter()
        for device in self._devices:
            if device.lost is None:
                self._read(device, self._last_s - before_s)
        if self.samples == 0:
            self._begin_span(self._windows.totals())
        else:
            self._end_span_if_due()
        cost_s = time.thread_time() - begun_s
        if self.samples > 0:  # the first includes what is loaded on first use
            self._recent_costs_s.append(cost_s)
        self.cost_s += cost_s
        self.samples += 1

    def _read(self, device: DeviceStats, span_s: float) -> None:
        try:
            now_s, totals = time.perf_counter(), self._windows.totals()
            self._span.add(span_s, device.add(now_s, totals, device.sensor.read()))
            device.misses_in_a_row = 0
        except ReadingFailedError as error:
            device.misses_in_a_row += 1
            if device.misses_in_a_row >= _MAX_MISSES_IN_A_ROW:
                device.lost = str(error)
        except DeviceLostError as error:
            device.lost = str(error)
        except Exception as error:
            # A bug in a sensor or a driver must not end a run of several days.
            device.lost = f"{type(error).__name__}: {error}"

    def _begin_span(self, totals: WindowTotals) -> None:
        self._span_begun_s, self._span_totals = self._last_s, totals
        self._span = Accumulator()

    def _end_span_if_due(self) -> None:
        """Append a record if the span is long enough, and begin the next one."""
        totals, span_s = self._windows.totals(), self._last_s - self._span_begun_s
        share_s = _RECORD_SHARE * (self._last_s - self._begun_s)
        wanted_s = min(max(self._period_s, share_s), _MAX_SPAN_S)
        has_step = totals.steps_s > self._span_totals.steps_s
        # If steps are slow, a record waits for the end of one: its rate is that of whole steps.
        is_complete = has_step or self._windows.is_idle or span_s >= _MAX_SPAN_S
        if (span_s >= 0.9 * wanted_s and is_complete) or self._stopping.is_set():
            self._records.append(self._record(totals, span_s))
            self._begin_span(totals)

    def _record(self, totals: WindowTotals, span_s: float) -> dict[str, Any]:
        span = self._span
        steps_s = totals.steps_s - self._span_totals.steps_s
        images = totals.images - self._span_totals.images
        # Without the power of a device for a part of the span, the sum would be too low.
        has_power = span.known_s["power_w"] >= 0.999 * span_s * len(self._devices)
        return {
            "unix_time_s": round(time.time(), 3),
            "span_s": span_s,
            "power_w": span.sums["power_w"] / span_s if has_power else None,
            "utilization": span.mean("utilization"),
            "memory_bytes": span.maxima.get("memory_bytes"),
            "temperature_c": span.maxima.get("temperature_c"),
            "clock_mhz": span.mean("clock_mhz"),
            "images_per_s": images / steps_s if steps_s > 0 else None,
        }
