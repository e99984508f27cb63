"""The thread that samples a node's devices about once a second, and what it found."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from image_classification.core.registry import Registry
from image_classification.telemetry.rank_location import Place
from image_classification.telemetry.sensors import (
    LostError,
    MissedError,
    NoSensor,
    Sensor,
)
from image_classification.telemetry.windows import DeviceTally, Stretch, WorkLog, WorkTotals

Opener = Callable[[Sequence[Place]], Sequence[Sensor]]

SENSORS: Registry[Opener] = Registry("kind of sensor")
SENSORS.add("cuda", "image_classification.telemetry.nvml:open_sensors")
SENSORS.add("cpu", "image_classification.telemetry.cpu:open_sensors")

PERIOD_S = 1.0
# Of one core's time. A sample that costs more comes less often.
_COST_SHARE = 0.004
_SHORTEST_S = 0.1
# Records cover a hundredth of the time so far: a long run has some thousands of them.
_RECORD_SHARE = 0.01
_LONGEST_RECORD_S = 60.0
# Only rank 0 takes them; the other nodes' are not asked for.
_RECORDS_KEPT = 10_000
_MISSES_IN_A_ROW = 10
_ENDING_S = 5.0


def open_sensors(kind: str, places: Sequence[Place]) -> Sequence[Sensor]:
    """Return the sensors of one node. kind: ``cuda``, ``cpu`` …; places: of its ranks."""
    if kind not in SENSORS:
        why = f"no sensors for {kind} devices in this release"
        return [NoSensor(place.device_name, why) for place in places]
    try:
        return SENSORS.get(kind)(places)
    except Exception as error:
        # As in `Sampler._read`: what cannot be measured is no reason not to train.
        why = f"{type(error).__name__}: {error}"
        return [NoSensor(place.device_name, why, expected=True) for place in places]


@dataclass
class _Span:
    """Of one record: sums since the last. Seconds each sum is over are beside it."""

    begun_s: float
    totals: WorkTotals
    time_s: float = 0.0
    energy_j: float | None = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    temperature_c: float | None = None

    def add(self, stretches: Sequence[Stretch | None], time_s: float) -> None:
        self.time_s += time_s
        for s in stretches:
            if s is None or s.power_w is None:
                self.energy_j = None
            elif self.energy_j is not None:
                self.energy_j += s.power_w * time_s
        for s in stretches:
            if s is None:
                continue
            for name in ("utilization", "clock_mhz"):
                value = vars(s.reading)[name]
                if value is not None:
                    self.sums[name] = self.sums.get(name, 0.0) + value * time_s
                    self.counts[name] = self.counts.get(name, 0.0) + time_s
            if s.reading.memory_bytes is not None:
                self.memory_bytes = max(s.reading.memory_bytes, self.memory_bytes or 0)
            if s.reading.temperature_c is not None:
                self.temperature_c = max(s.reading.temperature_c, self.temperature_c or 0.0)

    def values(self, totals: WorkTotals, unix_time_s: float) -> dict[str, Any]:
        power_w = None if self.energy_j is None else self.energy_j / self.time_s
        steps_s = totals.steps_s - self.totals.steps_s
        means = {
            name: self.sums[name] / self.counts[name] if self.counts.get(name) else None
            for name in ("utilization", "clock_mhz")
        }
        return {
            "unix_time_s": round(unix_time_s, 3),
            "span_s": self.time_s,
            "power_w": power_w,
            "utilization": means["utilization"],
            "memory_bytes": self.memory_bytes,
            "temperature_c": self.temperature_c,
            "clock_mhz": means["clock_mhz"],
            "images_per_s": (totals.images - self.totals.images) / steps_s if steps_s > 0 else None,
        }


class Sampler:
    """Samples in a thread of its own from `start` to `stop`; never raises into the run.

    A device that does not answer is left out from then on, with the reason in its figures. cost_s:
    processor time of ``samples`` samples.
    """

    def __init__(
        self, sensors: Sequence[Sensor], work: WorkLog, period_s: float = PERIOD_S
    ) -> None:
        self._tallies = [DeviceTally(sensor) for sensor in sensors]
        self._misses = [0] * len(sensors)
        self._work = work
        self._period_s = period_s
        self._stopping = threading.Event()
        self._records: deque[dict[str, Any]] = deque(maxlen=_RECORDS_KEPT)
        self._thread: threading.Thread | None = None
        self._span: _Span | None = None
        self._begun_s = time.perf_counter()
        self._last_s = self._begun_s
        self._recent_costs_s: deque[float] = deque(maxlen=5)
        self.cost_s = 0.0
        self.samples = 0

    def start(self) -> None:
        """Take the first sample here, so that nothing is missed, and the others in the thread."""
        self.sample()
        # A daemon: a driver that hangs must not keep a finished run alive.
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample and end the thread; may be called twice."""
        self._work.end()
        self._stopping.set()
        self._work.changed.set()
        if self._thread is None:
            return
        self._thread.join(_ENDING_S)
        if self._thread.is_alive():
            for tally in self._tallies:
                tally.lost = tally.lost or f"no answer within {_ENDING_S:g} s"
        self._thread = None

    def take_records(self) -> list[dict[str, Any]]:
        """Return the values of the ``telemetry`` records that are new since the last call."""
        taken = []
        while self._records:
            taken.append(self._records.popleft())
        return taken

    def trouble(self) -> str | None:
        """Return in one line which devices should be readable and are not; None for none."""
        found: dict[str, int] = {}
        for tally in self._tallies:
            sensor = tally.sensor
            why = tally.lost or ("" if sensor.source else next(iter(sensor.missing.values()), ""))
            if sensor.expected and why:
                found[why] = found.get(why, 0) + 1
        if not found:
            return None
        reasons = ", ".join(f"{why} ({n} of {len(self._tallies)})" for why, n in found.items())
        return f"power and utilisation are not measured to the end: {reasons}"

    def figures(self) -> dict[str, Any]:
        """Return devices, images and whether they are of the measured window; after `stop`."""
        totals = self._work.totals()
        measured = totals.measured_s > 0
        return {
            "devices": [tally.figures(totals) for tally in self._tallies],
            "images": totals.measured_images if measured else totals.images,
            "window": "measured" if measured else "training" if totals.training_s > 0 else None,
        }

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Signals are the main thread's, which may be asleep in a call they should interrupt.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._stopping.is_set():
            cost_s = median(self._recent_costs_s) if self._recent_costs_s else 0.0
            shortest_s = max(_SHORTEST_S, cost_s / _COST_SHARE)
            self._stopping.wait(max(0.0, self._last_s + shortest_s - time.perf_counter()))
            due_s = self._last_s + max(self._period_s, shortest_s)
            # Where work begins or ends, a sample tells the two sides apart.
            self._work.changed.wait(max(0.0, due_s - time.perf_counter()))
            self._work.changed.clear()
            if not self._stopping.is_set():
                self.sample()
        self.sample()
        for tally in self._tallies:
            tally.sensor.close()

    def sample(self) -> None:
        """Read every device once (the thread's work, and the benchmark's)."""
        begun_s = time.thread_time()
        before_s, self._last_s = self._last_s, time.perf_counter()
        stretches = [self._read(number) for number in range(len(self._tallies))]
        self._add(stretches, self._last_s - before_s)
        cost_s = time.thread_time() - begun_s
        if self.samples > 0:  # the first pays for what is loaded on first use
            self._recent_costs_s.append(cost_s)
        self.cost_s += cost_s
        self.samples += 1

    def _read(self, number: int) -> Stretch | None:
        tally = self._tallies[number]
        if tally.lost is not None:
            return None
        try:
            now_s, totals = time.perf_counter(), self._work.totals()
            stretch = tally.take(now_s, totals, tally.sensor.read())
        except MissedError as error:
            self._misses[number] += 1
            if self._misses[number] >= _MISSES_IN_A_ROW:
                tally.lost = str(error)
            return None
        except LostError as error:
            tally.lost = str(error)
            return None
        except Exception as error:
            # A sensor with a bug, or a driver with one, is no reason to end a run of days.
            tally.lost = f"{type(error).__name__}: {error}"
            return None
        self._misses[number] = 0
        return stretch

    def _add(self, stretches: Sequence[Stretch | None], time_s: float) -> None:
        totals, now_s = self._work.totals(), self._last_s
        if self._span is None:
            self._span = _Span(now_s, totals)
            return
        self._span.add(stretches, time_s)
        age_s = now_s - self._span.begun_s
        share_s = _RECORD_SHARE * (now_s - self._begun_s)
        wanted_s = min(max(self._period_s, share_s), _LONGEST_RECORD_S)
        stepped = totals.steps_s > self._span.totals.steps_s
        # Slow steps: a record waits for the end of one, so that its rate is of whole steps.
        complete = stepped or self._work.is_idle or age_s >= _LONGEST_RECORD_S
        if (age_s >= 0.9 * wanted_s and complete) or self._stopping.is_set():
            if self._span.time_s > 0:
                self._records.append(self._span.values(totals, time.time()))
            self._span = _Span(now_s, totals)
