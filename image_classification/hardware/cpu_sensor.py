"""A node's processors as one device: RAPL energy, and memory and time of the run's processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from image_classification.hardware.cgroup import read_cgroup
from image_classification.hardware.places import Place
from image_classification.hardware.process_tree import ProcessTree
from image_classification.hardware.rapl import POWERCAP, Rapl, RaplError
from image_classification.hardware.sensor import LostError, Reading

_NO_SENSOR = ("temperature_c", "clock_mhz", "throttle_reasons")


class CpuSensor:
    """utilization: processor time of the run's processes over that of the cores they may use."""

    expected = False

    def __init__(self, name: str, tree: ProcessTree, cores: float, powercap: Path) -> None:
        self.name = name
        self.missing = dict.fromkeys(_NO_SENSOR, "not read on a CPU")
        self._tree = tree
        self._cores = cores
        self._last: tuple[float, float] | None = None
        self._rapl: Rapl | None = None
        try:
            self._rapl = Rapl(powercap)
        except RaplError as error:
            self.missing["energy_j"] = self.missing["power_w"] = str(error)
        self.source = "/proc" if self._rapl is None else "RAPL packages, /proc"

    def read(self) -> Reading:
        """Return energy, memory and utilisation; the first has no utilisation.

        Raises:
            LostError: there is nothing to read.
        """
        energy_j = self._energy_j()
        now_s, use = time.perf_counter(), self._tree.read()
        if use is None and energy_j is None:
            raise LostError("/proc does not show the run's processes")
        if use is None:
            return Reading(energy_j=energy_j)
        utilization = None
        if self._last is not None and now_s > self._last[0]:
            # A process that ended unwaited takes its time out of the sum.
            used_s = max(0.0, use.cpu_s - self._last[1])
            utilization = used_s / ((now_s - self._last[0]) * self._cores)
        self._last = (now_s, use.cpu_s)
        peak = self._tree.peak_of_one_bytes() or 0
        return Reading(
            energy_j=energy_j,
            memory_bytes=max(use.resident_bytes, peak),
            utilization=utilization,
        )

    def _energy_j(self) -> float | None:
        if self._rapl is None:
            return None
        try:
            return self._rapl.energy_j()
        except RaplError as error:
            self.missing["energy_j"] = self.missing["power_w"] = str(error)
            self._rapl = None
            return None

    def close(self) -> None:
        """Nothing is held."""


def open_sensors(places: Sequence[Place]) -> list[CpuSensor]:
    """Return one sensor for the node: its processes share the processors."""
    cores = float(len({cpu for place in places for cpu in place.cpus}))
    quota = read_cgroup().cpus
    if quota is not None:
        cores = min(cores, quota)
    tree = ProcessTree(place.pid for place in places)
    return [CpuSensor(places[0].device_name, tree, cores, POWERCAP)]
