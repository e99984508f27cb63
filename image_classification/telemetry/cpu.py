"""A node's processors as one sensor: RAPL energy, memory and processor time of the run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from image_classification.core.host import read_cgroup
from image_classification.telemetry.rank_location import RankLocation
from image_classification.telemetry.sensors import DeviceLostError, Reading

POWERCAP = Path("/sys/class/powercap")


class RaplError(Exception):
    """The RAPL counters cannot be read; the text says why."""


class Rapl:
    """Energy of all processor packages of this machine, for all its processes.

    From Linux's powercap interface to the RAPL counters of Intel and AMD processors.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        """Find the packages under ``root``.

        Only ``intel-rapl:N`` named ``package-…`` count: nested folders are parts of a package,
        ``psys`` is the whole board, and ``intel-rapl-mmio`` repeats the same counters.

        Raises:
            RaplError: there are no such counters, or this user may not read them.
        """
        folders = [
            folder
            for folder in (sorted(root.iterdir()) if root.is_dir() else ())
            if re.fullmatch(r"intel-rapl:\d+", folder.name) and _is_package(folder)
        ]
        if not folders:
            raise RaplError(f"no processor package in {root}")
        try:
            self._range_uj = {f: int((f / "max_energy_range_uj").read_text()) for f in folders}
            self._last_uj = {folder: _counter_uj(folder) for folder in folders}
        except PermissionError as error:
            raise RaplError(f"no permission to read {error.filename}") from error
        except (OSError, ValueError) as error:
            raise RaplError(f"cannot read {folders[0]}: {error}") from error
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


def _counter_uj(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:
        return False


# Finding descendants reads every process of the machine, so it is limited to this share of time.
_SCAN_SHARE = 0.001


@dataclass(frozen=True)
class TreeUse:
    """resident_bytes: sum over processes; shared pages count in each. cpu_s: since their start."""

    resident_bytes: int
    cpu_s: float


class ProcessTree:
    """The processes ``roots`` and their descendants, whose time still counts after they end."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in roots if psutil.pid_exists(pid)]
        self._members: list[psutil.Process] = []
        self._next_scan_s = 0.0

    def read(self) -> TreeUse | None:
        """Return the tree's present use; None if no process can be read."""
        begun_s = time.perf_counter()
        if begun_s >= self._next_scan_s:
            self._members = self._scan()
            scan_s = time.perf_counter() - begun_s
            self._next_scan_s = begun_s + scan_s / _SCAN_SHARE
        uses = [use for process in self._members if (use := _use(process)) is not None]
        if not uses:
            return None
        return TreeUse(sum(u.resident_bytes for u in uses), sum(u.cpu_s for u in uses))

    def peak_of_one_bytes(self) -> int | None:
        """Return the largest resident set that any root ever had, which sampling may miss."""
        peaks = [peak for root in self._roots if (peak := _peak_bytes(root.pid)) is not None]
        return max(peaks, default=None)

    def _scan(self) -> list[psutil.Process]:
        found = {process for root in self._roots for process in _descendants(root)}
        return [*self._roots, *(found - set(self._roots))]


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:  # it has ended
        return []


def _use(process: psutil.Process) -> TreeUse | None:
    try:
        # user, system, and those of children that ended and were waited for.
        return TreeUse(process.memory_info().rss, sum(process.cpu_times()[:4]))
    except psutil.Error:  # it has ended
        return None


def _peak_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


class CpuSensor:
    """utilization: processor time of the run's processes over that of the cores it may use."""

    expected = False

    def __init__(self, name: str, tree: ProcessTree, cores: float, powercap: Path) -> None:
        self.name = name
        self.missing = dict.fromkeys(
            ("temperature_c", "clock_mhz", "throttle_reasons"), "not read on a CPU"
        )
        self._tree = tree
        self._cores = cores
        self._last: tuple[float, float] | None = None
        self._rapl: Rapl | None = None
        try:
            self._rapl = Rapl(powercap)
        except RaplError as error:
            self._lose_energy(error)
        self.source = "/proc" if self._rapl is None else "RAPL packages, /proc"

    def read(self) -> Reading:
        """Return energy, memory and utilization; the first reading has no utilization.

        Raises:
            DeviceLostError: there is nothing to read.
        """
        energy_j = self._energy_j()
        now_s, use = time.perf_counter(), self._tree.read()
        if use is None and energy_j is None:
            raise DeviceLostError("/proc does not show the run's processes")
        if use is None:
            return Reading(energy_j=energy_j)
        utilization = None
        if self._last is not None and now_s > self._last[0]:
            # The time of a process that ended without being waited for is lost from the sum.
            used_s = max(0.0, use.cpu_s - self._last[1])
            utilization = used_s / ((now_s - self._last[0]) * self._cores)
        self._last = (now_s, use.cpu_s)
        peak_bytes = self._tree.peak_of_one_bytes() or 0
        return Reading(
            energy_j=energy_j,
            memory_bytes=max(use.resident_bytes, peak_bytes),
            utilization=utilization,
        )

    def _energy_j(self) -> float | None:
        try:
            return None if self._rapl is None else self._rapl.energy_j()
        except RaplError as error:
            self._lose_energy(error)
            return None

    def _lose_energy(self, error: RaplError) -> None:
        self.missing["energy_j"] = self.missing["power_w"] = str(error)
        self._rapl = None

    def close(self) -> None:
        """Do nothing."""


def open_sensors(locations: Sequence[RankLocation]) -> list[CpuSensor]:
    """Return one sensor for the node: its ranks share the processors."""
    cores = float(len({cpu for location in locations for cpu in location.cpus}))
    quota = read_cgroup().cpus
    if quota is not None:
        cores = min(cores, quota)
    tree = ProcessTree(location.pid for location in locations)
    return [CpuSensor(locations[0].device_name, tree, cores, POWERCAP)]
