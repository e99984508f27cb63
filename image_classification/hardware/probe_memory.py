"""Checks of shared memory and main memory."""

from __future__ import annotations

import os
from pathlib import Path

from image_classification.core.checkup import Check, fail, ok, skipped, warn
from image_classification.core.sizes import size_text
from image_classification.hardware.cgroup import CgroupLimits

DOCKER_DEFAULT_SHM_BYTES = 64 * 2**20
_MORE_SHM = (
    "docker run --ipc=host, or --shm-size={size} (Kubernetes: an emptyDir of medium Memory on "
    "/dev/shm)"
)
_MEMORY_REMEDY = (
    "free memory, raise the container's limit (docker run --memory), or lower batch.per_device "
    "and data.workers"
)


def check_shared_memory(needed_bytes: int | None, folder: Path = Path("/dev/shm")) -> Check:
    """Compare ``/dev/shm`` with what the loader puts there; None: no run is asked about."""
    name = "shared-memory"
    try:
        status = os.statvfs(folder)
    except OSError as error:
        remedy = f"mount a tmpfs on {folder}; loader processes and NCCL hand data over through it"
        return fail(name, f"{folder}: {error.strerror}", remedy)
    total = status.f_blocks * status.f_frsize
    free = status.f_bavail * status.f_frsize
    return judge_shared_memory(str(folder), total, free, needed_bytes)


def judge_shared_memory(folder: str, total: int, free: int, needed_bytes: int | None) -> Check:
    """Judge free bytes against needed; Docker's default size is never enough for processes."""
    name = "shared-memory"
    found = f"{folder}: {size_text(free)} free of {size_text(total)}"
    if needed_bytes:
        found += f"; the loader needs up to {size_text(needed_bytes)}"
        if free < needed_bytes:
            gib = max(1, -(-5 * needed_bytes // (4 * 2**30)))
            less = ", or lower data.workers or data.prefetch"
            return fail(name, found, _MORE_SHM.format(size=f"{gib}g") + less)
    elif needed_bytes == 0:
        found += "; this platform's loader uses none"
    if total <= DOCKER_DEFAULT_SHM_BYTES:
        return warn(name, f"{found} (Docker's default size)", _MORE_SHM.format(size="8g"))
    return ok(name, found)


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return what the kernel says can be taken without swapping; None where it does not say."""
    file = root / "proc/meminfo"
    if not file.is_file():
        return None
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def check_memory(available: int | None, limits: CgroupLimits, least_bytes: int | None) -> Check:
    """Compare the memory that is left with the least a run takes; None: not known."""
    name = "memory"
    if available is None and limits.memory_headroom_bytes is None:
        return skipped(name, "neither /proc/meminfo nor a control group tells")
    candidates = [b for b in (available, limits.memory_headroom_bytes) if b is not None]
    headroom = min(candidates)
    found = f"{size_text(headroom)} can be taken before something is killed"
    if limits.memory_bytes is not None:
        found += f" (limit of the control group: {size_text(limits.memory_bytes)})"
    if least_bytes is None:
        return ok(name, found)
    found += f"; a run takes at least {size_text(least_bytes)}"
    if headroom < least_bytes:
        return fail(name, found, _MEMORY_REMEDY)
    if headroom < 1.5 * least_bytes:
        return warn(name, found, _MEMORY_REMEDY)
    return ok(name, found)
