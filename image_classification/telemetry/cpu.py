"""Energy of the processors' packages: Linux's powercap files of Intel's and AMD's RAPL counters.

Memory and processor time of processes and all their descendants, from Linux's /proc.

A node's processors as one device: RAPL energy, and memory and time of the run's processes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_classification.core.host import read_cgroup
from image_classification.telemetry.rank_location import Place
from image_classification.telemetry.sensors import LostError, Reading

POWERCAP = Path("/sys/class/powercap")


class RaplError(Exception):
    """The counters cannot be read; the text says why."""


class _Package:
    """One counter in microjoules, unwrapped."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._last_uj = int(self._counter.read_text())
        self.used_uj = 0

    def read(self) -> None:
        now_uj = int(self._counter.read_text())
        # Read at least once a minute, it cannot have wrapped twice.
        wrapped_uj = self._range_uj if now_uj < self._last_uj else 0
        self.used_uj += now_uj - self._last_uj + wrapped_uj
        self._last_uj = now_uj


class Rapl:
    """The energy of all packages of this machine, whoever uses them."""

    def __init__(self, root: Path = POWERCAP) -> None:
        """Find the packages under ``root``.

        Only ``intel-rapl:N`` named ``package-…``: what lies within is part of a package, ``psys``
        is the whole board, and ``intel-rapl-mmio`` the same counters once more.

        Raises:
            RaplError: no such counters, or not for this user.
        """
        folders = [
            folder
            for folder in (sorted(root.iterdir()) if root.is_dir() else ())
            if re.fullmatch(r"intel-rapl:\d+", folder.name) and _name(folder).startswith("package")
        ]
        if not folders:
            raise RaplError(f"no processor package in {root}")
        try:
            self._packages = [_Package(folder) for folder in folders]
        except PermissionError as error:
            raise RaplError(f"no permission to read {error.filename}") from error
        except (OSError, ValueError) as error:
            raise RaplError(f"cannot read {folders[0]}: {error}") from error

    def energy_j(self) -> float:
        """Return the joules used since this was made.

        Raises:
            RaplError: a counter cannot be read any more.
        """
        try:
            for package in self._packages:
                package.read()
        except (OSError, ValueError) as error:
            raise RaplError(f"a RAPL counter cannot be read any more: {error}") from error
        return sum(package.used_uj for package in self._packages) / 1e6


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""


# Looking through every process of a big machine takes milliseconds: it gets this share of the time.
_SCAN_SHARE = 0.001


@dataclass(frozen=True)
class _Stat:
    parent: int
    cpu_ticks: int
    resident_pages: int


@dataclass(frozen=True)
class TreeUse:
    """resident_bytes: summed over processes, shared pages counted in each. cpu_s: ever used."""

    resident_bytes: int
    cpu_s: float


class ProcessTree:
    """The processes ``roots`` with all they started; those that ended count with their time."""

    def __init__(self, roots: Iterable[int], proc: Path = Path("/proc")) -> None:
        self._roots = tuple(roots)
        self._proc = proc
        self._members: tuple[int, ...] = self._roots
        self._next_scan_s = 0.0
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> TreeUse | None:
        """Return the tree's present use; None without a /proc or after all have ended."""
        begun_s = time.perf_counter()
        if begun_s >= self._next_scan_s:
            stats = self._scan()
            took_s = time.perf_counter() - begun_s
            self._next_scan_s = begun_s + took_s / _SCAN_SHARE
        else:
            stats = self._stats(self._members)
        if not stats:
            return None
        return TreeUse(
            sum(stat.resident_pages for stat in stats.values()) * self._page_bytes,
            sum(stat.cpu_ticks for stat in stats.values()) * self._tick_s,
        )

    def peak_of_one_bytes(self) -> int | None:
        """Return the largest resident set any root ever had, which no sampling can miss."""
        peaks = [peak for root in self._roots if (peak := self._peak(root)) is not None]
        return max(peaks, default=None)

    def _peak(self, pid: int) -> int | None:
        try:
            lines = (self._proc / str(pid) / "status").read_text().splitlines()
        except OSError:
            return None
        found = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return next((1024 * int(kib) for kib in found), None)

    def _scan(self) -> dict[int, _Stat]:
        try:
            everyone = [int(name) for name in os.listdir(self._proc) if name.isdecimal()]
        except OSError:
            return {}
        stats = self._stats(everyone)
        children: dict[int, list[int]] = {}
        for pid, stat in stats.items():
            children.setdefault(stat.parent, []).append(pid)
        waiting, found = list(self._roots), set[int]()
        while waiting:
            pid = waiting.pop()
            if pid in stats and pid not in found:
                found.add(pid)
                waiting += children.get(pid, ())
        self._members = tuple(found)
        return {pid: stats[pid] for pid in found}

    def _stats(self, pids: Iterable[int]) -> dict[int, _Stat]:
        found = {}
        for pid in pids:
            stat = self._stat(pid)
            if stat is not None:
                found[pid] = stat
        return found

    def _stat(self, pid: int) -> _Stat | None:
        try:
            with open(f"{self._proc}/{pid}/stat", "rb", buffering=0) as file:
                text = file.read(1024)
        except OSError:  # it has ended meanwhile
            return None
        # The name in brackets may hold spaces and brackets; proc(5) counts from 1 with pid.
        values = text[text.rindex(b")") + 2 :].split()
        # utime, stime, and those of children that ended and were waited for.
        return _Stat(int(values[1]), sum(map(int, values[11:15])), int(values[21]))


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
