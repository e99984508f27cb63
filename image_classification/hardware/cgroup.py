"""What the control groups of Linux allow this process: memory, processors, processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes the largest multiple of a page where there is no limit.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits over this group and those above it; None where there is none.

    memory_headroom_bytes: what may still be taken; file cache that can be dropped counts as free.
    cpus: processors' worth of time. version: 1, 2, or None where there are no control groups.
    """

    version: int | None = None
    memory_bytes: int | None = None
    memory_headroom_bytes: int | None = None
    cpus: float | None = None
    processes: int | None = None


def read_cgroup(root: Path = Path("/")) -> CgroupLimits:
    """Read the limits of this process; root: where ``proc`` and ``sys`` lie."""
    mount = root / "sys/fs/cgroup"
    groups = _own_groups(root / "proc/self/cgroup")
    if (mount / "cgroup.controllers").exists():
        return _read_v2(list(_upwards(mount, groups.get("", "/"))))
    if not any((mount / name).is_dir() for name in ("memory", "cpu", "pids")):
        return CgroupLimits()
    return _read_v1(mount, groups)


def _own_groups(file: Path) -> dict[str, str]:
    """Return controller -> this process's group; version 2's is under the empty name."""
    groups: dict[str, str] = {}
    if not file.is_file():
        return groups
    for line in file.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """Yield the group's folder and those above it, as far as this container can see them."""
    folder = mount / group.lstrip("/")
    while folder != mount:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mount


def _read_v2(folders: list[Path]) -> CgroupLimits:
    memory, headroom, cpus, processes = [], [], [], []
    for folder in folders:
        limit = _number(folder / "memory.max")
        if limit is not None:
            memory.append(limit)
            used = _number(folder / "memory.current") or 0
            headroom.append(limit - used + _of_table(folder / "memory.stat", "inactive_file"))
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cpus.append(int(quota) / int(period))
        count = _number(folder / "pids.max")
        if count is not None:
            processes.append(count)
    return _tightest(2, memory, headroom, cpus, processes)


def _read_v1(mount: Path, groups: dict[str, str]) -> CgroupLimits:
    memory, headroom, cpus, processes = [], [], [], []
    for folder in _upwards(mount / "memory", groups.get("memory", "/")):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            memory.append(limit)
            used = _number(folder / "memory.usage_in_bytes") or 0
            cache = _of_table(folder / "memory.stat", "total_inactive_file")
            headroom.append(limit - used + cache)
    for folder in _upwards(mount / "cpu", groups.get("cpu", "/")):
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
        if quota and period:
            cpus.append(quota / period)
    for folder in _upwards(mount / "pids", groups.get("pids", "/")):
        count = _number(folder / "pids.max")
        if count is not None:
            processes.append(count)
    return _tightest(1, memory, headroom, cpus, processes)


def _tightest(
    version: int, memory: list[int], headroom: list[int], cpus: list[float], processes: list[int]
) -> CgroupLimits:
    return CgroupLimits(
        version,
        min(memory, default=None),
        max(0, min(headroom)) if headroom else None,
        min(cpus, default=None),
        min(processes, default=None),
    )


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _number(file: Path) -> int | None:
    """Return the number in ``file``; None for ``max``, ``-1`` or no file."""
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _of_table(file: Path, key: str) -> int:
    rows = (line.split() for line in _text(file).splitlines())
    return next((int(row[1]) for row in rows if row[0] == key), 0)
