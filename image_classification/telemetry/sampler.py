"""The thread that samples a node's devices about once per second."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from image_classification.core.registry import Registry
from image_classification.telemetry.device_stats import Accumulator, DeviceStats
from image_classification.telemetry.rank_location import RankLocation
from image_classification.telemetry.sensors import (
    DeviceLostError,
    MissingSensor,
    ReadingFailedError,
    Sensor,
)
from image_classification.telemetry.training_windows import TrainingWindows, WindowTotals

SENSORS: Registry[Callable[[Sequence[RankLocation]], Sequence[Sensor]]] = Registry("kind of sensor")
SENSORS.add("cuda", "image_classification.telemetry.nvml:open_sensors")
SENSORS.add("cpu", "image_classification.telemetry.cpu:open_sensors")

PERIOD_S = 1.0
# Share of one core's time. Samples that cost more are taken less often.
_MAX_COST_SHARE = 0.004
_MIN_PERIOD_S = 0.1
# A record spans a hundredth of the time so far, so a long run writes some thousands of them.
_RECORD_SHARE = 0.01
_MAX_SPAN_S = 60.0
# Only rank 0 takes the records; on the other nodes they would accumulate.
_MAX_RECORDS = 10_000
_MAX_MISSES_IN_A_ROW = 10
_JOIN_TIMEOUT_S = 5.0


def open_sensors(kind: str, locations: Sequence[RankLocation]) -> Sequence[Sensor]:
    """Return the sensors of one node. kind: of device (``cuda``, ``cpu``). locations: its ranks."""
    if kind not in SENSORS:
        why = f"no sensors for {kind} devices in this release"
        return [MissingSensor(location.device_name, why) for location in locations]
    try:
        return SENSORS.get(kind)(locations)
    except Exception as error:
        # As in `Sampler._read`: a measurement that fails must not stop training.
        why = f"{type(error).__name__}: {error}"
        return [MissingSensor(location.device_name, why, expected=True) for location in locations]


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
        taken = []
        while self._records:
            taken.append(self._records.popleft())
        return taken

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
        is_first = self.samples == 0
        for device in self._devices:
            if device.lost is None:
                self._read(device, 0.0 if is_first else self._last_s - before_s)
        self._close_span(is_first)
        cost_s = time.thread_time() - begun_s
        if not is_first:  # the first includes what is loaded on first use
            self._recent_costs_s.append(cost_s)
        self.cost_s += cost_s
        self.samples += 1

    def _read(self, device: DeviceStats, span_s: float) -> None:
        try:
            now_s, totals = time.perf_counter(), self._windows.totals()
            device.add(now_s, totals, device.sensor.read(), span_s)
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

    def _close_span(self, is_first: bool) -> None:
        """Append a record if the span is long enough, and begin the next one."""
        totals, now_s = self._windows.totals(), self._last_s
        span_s = now_s - self._span_begun_s
        share_s = _RECORD_SHARE * (now_s - self._begun_s)
        wanted_s = min(max(self._period_s, share_s), _MAX_SPAN_S)
        has_step = totals.steps_s > self._span_totals.steps_s
        # If steps are slow, a record waits for the end of one: its rate is that of whole steps.
        is_complete = has_step or self._windows.is_idle or span_s >= _MAX_SPAN_S
        is_due = (span_s >= 0.9 * wanted_s and is_complete) or self._stopping.is_set()
        if not is_first and not is_due:
            return
        if not is_first:
            self._records.append(self._record(totals, span_s))
        self._span_begun_s, self._span_totals = now_s, totals
        for device in self._devices:
            device.span = Accumulator()

    def _record(self, totals: WindowTotals, span_s: float) -> dict[str, Any]:
        spans = [device.span for device in self._devices]

        def mean(name: str) -> float | None:
            known_s = sum(span.known_s[name] for span in spans)
            return sum(span.sums[name] for span in spans) / known_s if known_s > 0 else None

        def highest(name: str) -> Any:
            return max((s.maxima[name] for s in spans if name in s.maxima), default=None)

        steps_s = totals.steps_s - self._span_totals.steps_s
        images = totals.images - self._span_totals.images
        # Unless every sample of every device has its power, the sum would be too low.
        has_power = all(span.known_s["power_w"] >= 0.999 * span_s for span in spans)
        return {
            "unix_time_s": round(time.time(), 3),
            "span_s": span_s,
            "power_w": sum(s.sums["power_w"] for s in spans) / span_s if has_power else None,
            "utilization": mean("utilization"),
            "memory_bytes": highest("memory_bytes"),
            "temperature_c": highest("temperature_c"),
            "clock_mhz": mean("clock_mhz"),
            "images_per_s": images / steps_s if steps_s > 0 else None,
        }
