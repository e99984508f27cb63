"""Checks of the disk that checkpoints go to."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from image_classification.core.host import (
    IN_MEMORY,
    NETWORK,
    OVERLAY,
    Mount,
)
from image_classification.core.units import size_text
from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    warn,
)

NUM_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20
_WRITE_LIMIT_S = 5.0
_LEAST_FREE_BYTES = 2**30
_SLOW_CHECKPOINT_S = 15.0
_LEAST_FREE_FILES = 1000
_ELSEWHERE = "give another --workspace, or free some space"


@dataclass(frozen=True)
class Written:
    """What `write_and_sync` did. free_files: None where the file system has no such limit."""

    folder: str
    num_bytes: int
    time_s: float
    free_bytes: int
    free_files: int | None


def existing_folder(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def write_and_sync(path: str, num_bytes: int = NUM_BYTES) -> Written:
    """Write random bytes, wait until they are on the disk, delete them.

    path: a folder; where it is not there yet, the nearest one above it is used. Stops early after
    some seconds. Raises OSError.
    """
    folder = existing_folder(Path(path))
    chunk = os.urandom(_CHUNK_BYTES)  # zeros would be compressed away on some disks
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder) as file:
        start = time.perf_counter()
        done = 0
        while done < num_bytes and time.perf_counter() - start < _WRITE_LIMIT_S:
            file.write(chunk[: num_bytes - done])
            file.flush()
            done = file.tell()
        os.fsync(file.fileno())
        time_s = time.perf_counter() - start
    status = os.statvfs(folder)
    free_files = status.f_favail if status.f_files else None
    return Written(str(folder), done, time_s, shutil.disk_usage(folder).free, free_files)


def check_speed(written: Written, checkpoint_bytes: int | None) -> Check:
    """Judge the writing speed by how long a checkpoint of that size takes."""
    name = "disk-speed"
    per_s = written.num_bytes / written.time_s
    found = (
        f"{per_s / 1e6:,.0f} MB/s ({size_text(written.num_bytes)} with fsync in "
        f"{1000 * written.time_s:,.0f} ms)"
    )
    if checkpoint_bytes is None:
        return ok(name, found)
    seconds = checkpoint_bytes / per_s
    found += f": {seconds:.1f} s a checkpoint"
    if seconds > _SLOW_CHECKPOINT_S:
        remedy = (
            "give a --workspace on a faster disk: a job that is told to stop often has 30 s to save"
        )
        return warn(name, found, remedy)
    return ok(name, found)


def check_space(
    written: Written, checkpoint_bytes: int | None, kept: int | None, largest: str
) -> Check:
    """Compare free space with ``kept`` checkpoints, the best and one being written.

    checkpoint_bytes: of the largest model, called ``largest``; None: not known. kept: None where
    all are kept.
    """
    name = "disk-space"
    found = f"{size_text(written.free_bytes)} free for {written.folder}"
    if written.free_files is not None and written.free_files < _LEAST_FREE_FILES:
        return fail(name, f"{found}, but only {written.free_files} more files", _ELSEWHERE)
    if checkpoint_bytes is None:
        if written.free_bytes < _LEAST_FREE_BYTES:
            return warn(name, found, _ELSEWHERE)
        return ok(name, found)
    count = (1 if kept is None else kept) + 2
    needed = count * checkpoint_bytes
    found += f"; {largest} needs {size_text(needed)} ({count} checkpoints"
    found += " and more, as all are kept)" if kept is None else ")"
    if written.free_bytes < needed:
        return fail(name, found, _ELSEWHERE)
    if written.free_bytes < 2 * needed:
        return warn(name, found, _ELSEWHERE)
    return ok(name, found)


def check_file_system(folder: str, mount: Mount | None, in_container: bool) -> Check:
    """Say what ``folder`` lies on, and whether that outlives the container or the machine."""
    name = "file-system"
    if mount is None:
        return ok(name, f"{folder}: kind not known")
    found = f"{folder}: {mount.kind} on {mount.point}"
    if mount.kind in IN_MEMORY:
        return warn(
            name,
            f"{found}, which is memory: lost when the machine or container ends",
            "give a --workspace on a disk",
        )
    if mount.kind in OVERLAY and in_container:
        return warn(
            name,
            f"{found}: lost when the container is removed",
            "mount a folder of the host (docker run -v /host/runs:/runs) and give it as "
            "--workspace",
        )
    if mount.kind in NETWORK or mount.kind.startswith("fuse."):
        return ok(name, f"{found}, over a network or FUSE: all nodes see it where all mount it")
    return ok(name, found)
