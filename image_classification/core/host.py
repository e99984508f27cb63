"""The Linux host of this process: file systems, container, control group limits, NVIDIA's NVML."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p")
IN_MEMORY = ("tmpfs", "ramfs")
OVERLAY = ("overlay", "aufs")


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``. source_root: the mounted folder of the file system."""

    point: str
    kind: str
    source_root: str
    is_read_only: bool


def read_mounts(root: Path = Path("/")) -> list[Mount]:
    """Return the mounts that this process sees; none if the system has no mount table."""
    file = root / "proc/self/mountinfo"
    if not file.is_file():
        return []
    mounts = []
    for line in file.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        options = fields[5].split(",")
        mounts.append(
            Mount(_unescape(fields[4]), right.split()[0], _unescape(fields[3]), "ro" in options)
        )
    return mounts


def _unescape(text: str) -> str:
    """Replace the mount table's octal escapes of space, tab, newline and backslash."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount of ``path``: the one with the longest path, the last of equal ones."""
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
"""Name of its base image, such as ``python:3.11-slim-bookworm``."""
REVISION_VARIABLE = "IMAGE_CLASSIFICATION_REVISION"
"""Commit that the image was built from; "" if unknown."""


def container_kind(environ: Mapping[str, str], mounts: list[Mount], root: Path = Path("/")) -> str:
    """Return ``kubernetes``, ``docker``, ``podman``, ``apptainer``, ``enroot``, or "" for none.

    Other containers are named by systemd's ``container`` variable, if it is set.
    """
    # Apptainer may run in a pod or in another container, and is then the innermost.
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
    # Enroot is recognizable only by the source of its mounts on / and in /etc.
    etc = [m for m in mounts if m.point == "/" or m.point.startswith("/etc/")]
    if any("enroot" in m.source_root.split("/") for m in etc):
        return "enroot"
    return environ.get("container", "")


def image_text(environ: Mapping[str, str]) -> str:
    """Return ``IMAGE on BASE`` inside an image of this project, else ""."""
    image, base = environ.get(IMAGE_VARIABLE, ""), environ.get(BASE_VARIABLE, "")
    return f"{image} on {base}" if image and base else image


def container_text(kind: str, environ: Mapping[str, str]) -> str:
    """Return ``KIND, IMAGE on BASE``; only the kind outside images of this project."""
    image = image_text(environ)
    # If the engine is not recognized, the image's environment variables are still set.
    return f"{kind or 'container'}, {image}" if image else kind


def parse_cpu_list(text: str) -> set[int]:
    """Parse Linux's CPU list format: ``0-3,8`` is {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        cpus.update(range(int(low), int(high or low) + 1))
    return cpus


# Without a limit, version 1 has the largest multiple of the page size.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits of this control group and its parents; None if there is no limit.

    memory_headroom_bytes: what may still be allocated; reclaimable file cache counts as free. cpus:
    quota of processor time. version: 1, 2, or None without control groups.
    """

    version: int | None = None
    memory_bytes: int | None = None
    memory_headroom_bytes: int | None = None
    cpus: float | None = None
    processes: int | None = None


def read_cgroup(root: Path = Path("/")) -> CgroupLimits:
    """Return the limits of this process. root: the folder of ``proc`` and ``sys``."""
    mount = root / "sys/fs/cgroup"
    groups = _own_groups(root / "proc/self/cgroup")
    controllers = ("memory", "cpu", "pids")
    if (mount / "cgroup.controllers").exists():
        version = 2
        folders = {c: list(_upwards(mount, groups.get("", "/"))) for c in controllers}
        limit_name, used_name, cache_key = "memory.max", "memory.current", "inactive_file"
    elif any((mount / name).is_dir() for name in controllers):
        version = 1
        folders = {c: list(_upwards(mount / c, groups.get(c, "/"))) for c in controllers}
        limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        cache_key = "total_inactive_file"
    else:
        return CgroupLimits()
    memory, headroom = [], []
    for folder in folders["memory"]:
        limit = _number(folder / limit_name)
        if limit is not None and limit < _NO_LIMIT:
            used = _number(folder / used_name) or 0
            memory.append(limit)
            headroom.append(limit - used + _table_value(folder / "memory.stat", cache_key))
    cpus = (_cpu_quota(folder) for folder in folders["cpu"])
    processes = (_number(folder / "pids.max") for folder in folders["pids"])
    return CgroupLimits(
        version,
        min(memory, default=None),
        max(0, min(headroom)) if headroom else None,
        min((count for count in cpus if count is not None), default=None),
        min((count for count in processes if count is not None), default=None),
    )


def _cpu_quota(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:  # version 1
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _own_groups(file: Path) -> dict[str, str]:
    """Return controller -> group of this process; version 2 has one, named ""."""
    groups: dict[str, str] = {}
    if not file.is_file():
        return groups
    for line in file.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """Yield the folders of the group and its parents that this container can see."""
    folder = mount / group.lstrip("/")
    while folder != mount:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mount


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _number(file: Path) -> int | None:
    """Return the number in ``file``; None for ``max``, ``-1`` or no file."""
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _table_value(file: Path, key: str) -> int:
    rows = (line.split() for line in _text(file).splitlines())
    return next((int(row[1]) for row in rows if row[0] == key), 0)


def open_nvml() -> tuple[ModuleType | None, Exception | None]:
    """Return ``pynvml``, initialized, and None; or None and why it is unavailable.

    The error is an ImportError or an ``NVMLError``. The caller must call ``nvmlShutdown``.
    """
    try:
        import pynvml
    except ImportError:
        return None, ImportError("the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, error
    return pynvml, None


@contextmanager
def nvml() -> Iterator[ModuleType | None]:
    """Yield `open_nvml`'s ``pynvml`` or None; shut it down at the end."""
    lib, _ = open_nvml()
    try:
        yield lib
    finally:
        if lib is not None:
            lib.nvmlShutdown()


def driver_version() -> str | None:
    """Return the NVIDIA driver's version; None without a driver."""
    with nvml() as lib:
        return None if lib is None else str(lib.nvmlSystemGetDriverVersion())


def pci_bus_id(properties: Any) -> str:
    """Return NVML's PCI bus id from ``torch.cuda.get_device_properties``: ``00000000:3B:00.0``."""
    p = properties
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"
