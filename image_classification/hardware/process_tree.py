"""Memory and processor time of processes and all their descendants, from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
