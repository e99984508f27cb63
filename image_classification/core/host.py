"""Which file system a path lies on, from Linux's mount table.

Which container this process is in, and which image that was made from.

What the control groups of Linux allow this process: memory, processors, processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p")
IN_MEMORY = ("tmpfs", "ramfs")
OVERLAY = ("overlay", "aufs")


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``. source_root: what of the file system is mounted."""

    point: str
    kind: str
    source_root: str
    is_read_only: bool


def read_mounts(root: Path = Path("/")) -> list[Mount]:
    """Return the mounts this process sees; none where the system does not tell."""
    file = root / "proc/self/mountinfo"
    if not file.is_file():
        return []
    mounts = []
    for line in file.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        options = fields[5].split(",")
        mounts.append(
            Mount(_plain(fields[4]), right.split()[0], _plain(fields[3]), "ro" in options)
        )
    return mounts


def _plain(text: str) -> str:
    """Undo the table's octal escapes of space, tab, newline and backslash."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount that ``path`` lies on: the longest, of equals the last."""
    real = os.path.realpath(path)
    found = None
    for mount in mounts:
        inside = mount.point == "/" or real == mount.point or real.startswith(mount.point + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


IMAGE_VARIABLE = "IMAGE_CLASSIFICATION_IMAGE"
"""Name and version of the image, such as ``image-classification 0.1.0``."""
BASE_VARIABLE = "IMAGE_CLASSIFICATION_BASE"
"""Name of the image it was built from, such as ``python:3.11-slim-bookworm``."""
REVISION_VARIABLE = "IMAGE_CLASSIFICATION_REVISION"
"""Commit whose files are in the image; "" where unknown."""


def container_kind(environ: Mapping[str, str], mounts: list[Mount], root: Path = Path("/")) -> str:
    """Return ``kubernetes``, ``docker``, ``podman``, ``apptainer``, ``enroot``, or "" for none.

    Another name that the container itself gives (systemd's ``container`` variable) is returned.
    """
    # Apptainer in a pod, or on a machine that is itself a container, is what the run is in.
    if "APPTAINER_CONTAINER" in environ or "SINGULARITY_CONTAINER" in environ:
        return "apptainer"
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".singularity.d").is_dir():
        return "apptainer"
    # Enroot leaves no mark but the source of what it mounts over the root and /etc.
    etc = [m for m in mounts if m.point == "/" or m.point.startswith("/etc/")]
    if any("enroot" in m.source_root.split("/") for m in etc):
        return "enroot"
    return environ.get("container", "")


def image_text(environ: Mapping[str, str]) -> str:
    """Return the image in words, ``image-classification 0.1.0 on python:3.11-slim``.

    "" where this is no image of the project.
    """
    image, base = environ.get(IMAGE_VARIABLE, ""), environ.get(BASE_VARIABLE, "")
    return f"{image} on {base}" if image and base else image


def container_text(kind: str, environ: Mapping[str, str]) -> str:
    """Return kind and image, ``docker, image-classification 0.1.0 on python:3.11-slim``.

    The kind alone outside the project's images; "" outside containers.
    """
    image = image_text(environ)
    # An engine that leaves no mark still passes on the image's environment.
    return f"{kind or 'container'}, {image}" if image else kind


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
