"""A node's processors as one sensor: RAPL energy, memory and processor time of the run."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from image_classification.core.host import read_cgroup
from image_classification.telemetry.sensors import DeviceLostError, RankLocation, Reading, Sensor

POWERCAP = Path("/sys/class/powercap")
# Finding descendants reads every process of the machine: it may take this fraction of the time.
_SCAN_SHARE = 0.001
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class RaplError(Exception):
    """The RAPL counters cannot be read; the text says why."""


class Rapl:
    """Energy of all processor packages of this machine, for all its processes.

    From Linux's powercap interface to the RAPL counters of Intel and AMD processors.
    """

    def __init__(self, root: Path) -> None:
        """Find the packages under ``root``.

        Only ``intel-rapl:N`` named ``package-…`` count: nested folders are parts of a package,
        ``psys`` is the whole board, and ``intel-rapl-mmio`` repeats the same counters.

        Raises:
            RaplError: there are no such counters, or this user may not read them.
        """
        try:
            folders = [
                folder
                for folder in root.glob("intel-rapl:*")
                if re.fullmatch(r"intel-rapl:\d+", folder.name) and _is_package(folder)
            ]
            if not folders:
                raise RaplError(f"no processor package in {root}")
            self._range_uj = {f: int((f / "max_energy_range_uj").read_text()) for f in folders}
            self._last_uj = {folder: _counter_uj(folder) for folder in folders}
        except PermissionError as error:
            raise RaplError(f"no permission to read {error.filename}") from error
        except (OSError, ValueError) as error:
            raise RaplError(f"cannot read {root}: {error}") from error
        self._used_uj = 0

    def energy_j(self) -> float:
        """Return the joules used since construction.

        Raises:
            RaplError: a counter can no longer be read.
        """
        try:
            for folder, last_uj in self._last_uj.items():
                now_uj = _counter_uj(folder)
                # Read at least once per minute, a counter cannot have overflowed twice.
                overflow_uj = self._range_uj[folder] if now_uj < last_uj else 0
                self._used_uj += now_uj - last_uj + overflow_uj
                self._last_uj[folder] = now_uj
        except (OSError, ValueError) as error:
            raise RaplError(f"a RAPL counter can no longer be read: {error}") from error
        return self._used_uj / 1e6


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:  # the other folders may still be readable
        return False


def _counter_uj(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


class ProcessTree:
    """The processes ``roots`` and their descendants, whose time still counts after they end."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in roots if psutil.pid_exists(pid)]
        self._pids: set[int] = set()
        self._next_scan_s = 0.0

    def read(self) -> tuple[int, float] | None:
        """Return resident bytes and processor seconds; None if no process can be read.

        Shared pages count in each process. The seconds are those since the processes' start.
        """
        begun_s = time.perf_counter()
        if begun_s >= self._next_scan_s:
            self._pids = {root.pid for root in self._roots}
            for root in self._roots:
                with suppress(psutil.Error):  # it has ended
                    self._pids |= {p.pid for p in root.children(recursive=True)}
            scan_s = time.perf_counter() - begun_s
            self._next_scan_s = begun_s + scan_s / _SCAN_SHARE
        uses = [use for pid in self._pids if (use := _pages_and_ticks(pid)) is not None]
        if not uses:
            return None
        pages, ticks = (sum(column) for column in zip(*uses, strict=True))
        return pages * _PAGE_BYTES, ticks / _TICKS_PER_S

    def peak_of_one_bytes(self) -> int:
        """Return the largest resident set that any root ever had, which sampling may miss."""
        return max((_peak_bytes(root.pid) for root in self._roots), default=0)


def _pages_and_ticks(pid: int) -> tuple[int, int] | None:
    # One file for both, and without psutil's other fields: a sample then takes half the time.
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except OSError:  # it has ended
        return None
    # proc(5); the program's name in brackets may contain spaces and brackets.
    values = text.rpartition(b")")[2].split()
    # utime, stime, and those of children that ended and were waited for.
    return int(values[21]), sum(int(value) for value in values[11:15])


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


class CpuSensor(Sensor):
    """All processors of a node.

    utilization: processor time of the run's processes over that of the cores it may use.
    """

    def __init__(self, name: str, tree: ProcessTree, cores: float, powercap: Path) -> None:
        fields = ("temperature_c", "clock_mhz", "throttle_reasons")
        super().__init__(name, dict.fromkeys(fields, "not read on a CPU"))
        self._tree = tree
        self._cores = cores
        self._last: tuple[float, float] | None = None
        self._rapl: Rapl | None = None
        self.source = "/proc"
        try:
            self._rapl = Rapl(powercap)
            self.source = "RAPL packages, /proc"
        except RaplError as error:
            self._lose_energy(error)

    def read(self) -> Reading:
        """Return energy, memory and utilization; the first reading has no utilization.

        Raises:
            DeviceLostError: there is nothing to read.
        """
        energy_j = None
        if self._rapl is not None:
            try:
                energy_j = self._rapl.energy_j()
            except RaplError as error:
                self._lose_energy(error)
        now_s, use = time.perf_counter(), self._tree.read()
        if use is None:
            if energy_j is None:
                raise DeviceLostError("/proc does not show the run's processes")
            return Reading(energy_j=energy_j)
        resident_bytes, cpu_s = use
        utilization = None
        if self._last is not None and now_s > self._last[0]:
            # The time of a process that ended without being waited for is lost from the sum.
            used_s = max(0.0, cpu_s - self._last[1])
            utilization = used_s / ((now_s - self._last[0]) * self._cores)
        self._last = (now_s, cpu_s)
        memory_bytes = max(resident_bytes, self._tree.peak_of_one_bytes())
        return Reading(energy_j=energy_j, memory_bytes=memory_bytes, utilization=utilization)

    def _lose_energy(self, error: RaplError) -> None:
        self.missing["energy_j"] = self.missing["power_w"] = str(error)
        self._rapl = None


def open_sensors(locations: Sequence[RankLocation]) -> list[CpuSensor]:
    """Return one sensor for the node: its ranks share the processors."""
    cores = float(len({cpu for location in locations for cpu in location.cpus}))
    quota = read_cgroup().cpus
    if quota is not None:
        cores = min(cores, quota)
    tree = ProcessTree(location.pid for location in locations)
    return [CpuSensor(locations[0].device_name, tree, cores, POWERCAP)]
