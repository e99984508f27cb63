"""Checks of the host: CPUs, memory, limits, the workspace's disk, the clock, the container."""

from __future__ import annotations

import getpass
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from image_classification.core.host import (
    IN_MEMORY,
    NETWORK,
    OVERLAY,
    CgroupLimits,
    Mount,
    mount_of,
    parse_cpu_list,
)
from image_classification.core.units import size
from image_classification.doctor.report import CheckResult, fail, judge, ok, skipped, warn


def check_cores(
    allowed: int, present: int, cgroup: CgroupLimits, processes: int, loader_threads: int | None
) -> CheckResult:
    """Compare the logical CPUs that this job may use with those of the machine and of a run.

    processes: ranks of this node. loader_threads: loader processes or threads of all ranks; None
    without a platform.
    """
    name = "cpus"
    found = f"{allowed} of {present} may be used"
    usable = float(allowed)
    if cgroup.cpus is not None and cgroup.cpus < allowed:
        usable = cgroup.cpus
        found += f", with a quota of {cgroup.cpus:g} CPUs (control group)"
    if loader_threads is None:
        return ok(name, found)
    found += f"; a run has {processes} + {loader_threads} loader processes or threads"
    needed = processes + loader_threads
    if usable < needed and (processes > 1 or usable < loader_threads):
        remedy = "let the job use more (docker run --cpus, --cpuset-cpus; srun -c), or lower "
        return warn(name, found, f"{remedy}data.workers")
    return ok(name, found)


def numa_nodes(root: Path = Path("/")) -> dict[int, set[int]]:
    """Return NUMA node -> its logical CPUs; empty if the system does not list them."""
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    nodes = {int(f.name.removeprefix("node")): (f / "cpulist").read_text() for f in folders}
    return {node: parse_cpu_list(text) for node, text in sorted(nodes.items())}


def check_numa(nodes: Mapping[int, Set[int]], allowed: Set[int]) -> CheckResult:
    """Describe how this job's CPUs are distributed over the NUMA nodes."""
    name = "numa"
    with_cpus = {node: cpus for node, cpus in nodes.items() if cpus}
    if not with_cpus:
        return skipped(name, "the system does not list its NUMA nodes")
    parts = [f"node {node}: {len(cpus & allowed)}" for node, cpus in with_cpus.items()]
    count = f"{len(with_cpus)} node{'s' if len(with_cpus) > 1 else ''} with CPUs"
    return ok(name, f"{count}; usable here: {', '.join(parts)}")


def check_omp_threads(
    environ: Mapping[str, str], allowed: int, processes: int, computes_on_cpu: bool
) -> CheckResult:
    """Judge ``OMP_NUM_THREADS``, which every process of a run inherits."""
    name, text = "omp-threads", environ.get("OMP_NUM_THREADS")
    share = max(1, allowed // processes)
    if text is None:
        plural = "s" if share > 1 else ""
        return ok(name, f"OMP_NUM_THREADS is not set: {share} thread{plural} per process")
    found = f"OMP_NUM_THREADS={text}"
    if not text.split(",")[0].isdecimal():
        return warn(name, f"{found}, which is not a number", "unset OMP_NUM_THREADS")
    threads = int(text.split(",")[0])
    remedy = f"unset it, or export OMP_NUM_THREADS={share}"
    if threads * processes > allowed and processes > 1:
        return warn(name, f"{found} in {processes} processes on {allowed} CPUs", remedy)
    if computes_on_cpu and threads < share:
        return warn(name, f"{found}, but {share} CPUs per process may be used", remedy)
    return ok(name, found)


DOCKER_DEFAULT_SHM_BYTES = 64 * 2**20
_SHM_REMEDY = (
    "docker run --ipc=host, or --shm-size={size} (Kubernetes: an emptyDir of medium Memory on "
    "/dev/shm)"
)


def check_shared_memory(needed_bytes: int | None, folder: Path = Path("/dev/shm")) -> CheckResult:
    """Compare ``/dev/shm`` with what the loader puts there; None: without a platform.

    Docker's default size is too small for loader processes and NCCL.
    """
    name = "shared-memory"
    try:
        status = os.statvfs(folder)
    except OSError as error:
        remedy = f"mount a tmpfs on {folder}, through which loader processes and NCCL exchange data"
        return fail(name, f"{folder}: {error.strerror}", remedy)
    total, free = (n * status.f_frsize for n in (status.f_blocks, status.f_bavail))
    found = f"{folder}: {size(free)} free of {size(total)}"
    if needed_bytes:
        found += f"; the loader needs up to {size(needed_bytes)}"
        if free < needed_bytes:
            gib = max(1, -(-5 * needed_bytes // (4 * 2**30)))
            remedy = _SHM_REMEDY.format(size=f"{gib}g")
            return fail(name, found, f"{remedy}, or lower data.workers or data.prefetch")
    elif needed_bytes == 0:
        found += "; this platform's loader uses none"
    if total <= DOCKER_DEFAULT_SHM_BYTES:
        return warn(name, f"{found} (Docker's default size)", _SHM_REMEDY.format(size="8g"))
    return ok(name, found)


def check_memory(available: int, cgroup: CgroupLimits, needed_bytes: int | None) -> CheckResult:
    """Compare the available memory with the least that a run needs.

    available: bytes, without swapping. needed_bytes: None without a platform.
    """
    name, headroom = "memory", available
    if cgroup.memory_headroom_bytes is not None:
        headroom = min(headroom, cgroup.memory_headroom_bytes)
    found = f"{size(headroom)} available"
    if cgroup.memory_bytes is not None:
        found += f" (limit of the control group: {size(cgroup.memory_bytes)})"
    if needed_bytes is None:
        return ok(name, found)
    found += f"; a run needs at least {size(needed_bytes)}"
    remedy = (
        "free memory, raise the container's limit (docker run --memory), or lower batch.per_device "
        "and data.workers"
    )
    return judge(name, found, headroom, needed_bytes, 1.5 * needed_bytes, remedy)


_MIN_OPEN_FILES = 1024
_MIN_STACK_BYTES = 8 * 2**20
UNLIMITED = resource.RLIM_INFINITY

LIMITS = {
    "open-files": resource.RLIMIT_NOFILE,
    "locked-memory": resource.RLIMIT_MEMLOCK,
    "stack": resource.RLIMIT_STACK,
    "processes": resource.RLIMIT_NPROC,
    "core-files": resource.RLIMIT_CORE,
}


def read_soft_limits() -> dict[str, int]:
    """Return the current value of each of `LIMITS`; `UNLIMITED` if there is no limit."""
    return {name: resource.getrlimit(kind)[0] for name, kind in LIMITS.items()}


def core_pattern(root: Path = Path("/")) -> str:
    """Return where the kernel writes core files; "" if it does not say."""
    file = root / "proc/sys/kernel/core_pattern"
    return file.read_text().strip() if file.is_file() else ""


def check_limits(
    soft: Mapping[str, int],
    cgroup: CgroupLimits,
    open_files: int,
    threads: int,
    has_gpus: bool,
    pattern: str,
) -> list[CheckResult]:
    """Judge the soft limits of `read_soft_limits`.

    open_files: that one process of a run needs. threads: of all processes of this node. pattern:
    see `core_pattern`.
    """
    limits = {name: math.inf if limit == UNLIMITED else limit for name, limit in soft.items()}

    def text(value: float, unit: Callable[[int], str] = "{:,}".format) -> str:
        return "unlimited" if value == math.inf else unit(int(value))

    files, locked, stack = limits["open-files"], limits["locked-memory"], limits["stack"]
    locked_text = f"{text(locked, size)} (relevant only with GPUs)"
    if has_gpus:
        locked_text = text(locked, size)
        if locked < math.inf:
            locked_text += "; NCCL registers more memory than this with network cards"
    processes = min(limits["processes"], math.inf if cgroup.processes is None else cgroup.processes)
    return [
        judge(
            "open-files",
            f"{text(files)} per process; a run needs up to {open_files:,}",
            files,
            open_files,
            _MIN_OPEN_FILES,
            "ulimit -n 65536 (Docker: --ulimit nofile=65536)",
        ),
        judge(
            "locked-memory",
            locked_text,
            locked,
            0,
            math.inf if has_gpus else 0,
            "ulimit -l unlimited (Docker: --ulimit memlock=-1)",
        ),
        judge(
            "stack",
            text(stack, size),
            stack,
            0,
            _MIN_STACK_BYTES,
            "ulimit -s 65536 (Docker: --ulimit stack=67108864)",
        ),
        judge(
            "processes",
            f"{text(processes)} for the user or container; a run has about {threads:,} with its "
            "threads",
            processes,
            threads,
            2 * threads,
            "ulimit -u (Docker: --pids-limit, Slurm and Kubernetes: the cluster's own limit)",
        ),
        _check_core_files(text(limits["core-files"], size), soft["core-files"], pattern),
    ]


def _check_core_files(text: str, limit: int, pattern: str) -> CheckResult:
    name = "core-files"
    if limit == 0:
        return ok(name, "none are written when a process crashes")
    if pattern.startswith("|"):
        return ok(name, f"{text}, received by {pattern[1:].split()[0]}")
    found = f"{text}, written as {pattern or 'core'}: a crash can fill the disk"
    return warn(name, found, "ulimit -c 0 (Docker: --ulimit core=0)")


_WRITE_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20
_MAX_WRITE_S = 5.0
_MIN_FREE_BYTES = 2**30
_MIN_FREE_FILES = 1000
_SLOW_CHECKPOINT_S = 15.0


@dataclass(frozen=True)
class WriteTest:
    """Result of `write_and_sync`. free_files: None if the file system has no such limit."""

    folder: str
    num_bytes: int
    time_s: float
    free_bytes: int
    free_files: int | None


def existing_folder(path: Path) -> Path:
    """Return ``path``, or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def write_and_sync(path: str, num_bytes: int = _WRITE_BYTES) -> WriteTest:
    """Probe: write random bytes, wait until they are on the disk, and delete them.

    path: a folder; if it does not exist, its nearest parent that does is used. Stops after some
    seconds.

    Raises:
        OSError: the bytes cannot be written.
    """
    folder = existing_folder(Path(path))
    chunk = os.urandom(_CHUNK_BYTES)  # some disks compress zeros
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder) as file:
        start_s = time.perf_counter()
        done = 0
        while done < num_bytes and time.perf_counter() - start_s < _MAX_WRITE_S:
            file.write(chunk[: num_bytes - done])
            file.flush()
            done = file.tell()
        os.fsync(file.fileno())
        time_s = time.perf_counter() - start_s
    status = os.statvfs(folder)
    free_files = status.f_favail if status.f_files else None
    return WriteTest(str(folder), done, time_s, shutil.disk_usage(folder).free, free_files)


def check_disk_speed(test: WriteTest, checkpoint_bytes: int | None) -> CheckResult:
    """Judge the writing speed by the time of a checkpoint; None: size unknown."""
    name = "disk-speed"
    bytes_per_s = test.num_bytes / test.time_s
    found = (
        f"{bytes_per_s / 1e6:,.0f} MB/s ({size(test.num_bytes)} with fsync in "
        f"{1000 * test.time_s:,.0f} ms)"
    )
    if checkpoint_bytes is None:
        return ok(name, found)
    time_s = checkpoint_bytes / bytes_per_s
    found += f": {time_s:.1f} s per checkpoint"
    if time_s > _SLOW_CHECKPOINT_S:
        remedy = "give a --workspace on a faster disk: a job that is stopped often has 30 s to save"
        return warn(name, found, remedy)
    return ok(name, found)


def check_disk_space(
    test: WriteTest, checkpoint_bytes: int | None, kept: int | None, model: str
) -> CheckResult:
    """Compare the free space with ``kept`` checkpoints, the best one and one being written.

    checkpoint_bytes: of the largest model, ``model``; None: unknown. kept: None to keep all.
    """
    name, remedy = "disk-space", "give another --workspace, or free some space"
    found = f"{size(test.free_bytes)} free for {test.folder}"
    if test.free_files is not None and test.free_files < _MIN_FREE_FILES:
        return fail(name, f"{found}, but only {test.free_files} more files", remedy)
    if checkpoint_bytes is None:
        return judge(name, found, test.free_bytes, 0, _MIN_FREE_BYTES, remedy)
    count = (1 if kept is None else kept) + 2
    needed = count * checkpoint_bytes
    found += f"; {model} needs {size(needed)} ({count} checkpoints"
    found += " and more, since all are kept)" if kept is None else ")"
    return judge(name, found, test.free_bytes, needed, 2 * needed, remedy)


def check_file_system(folder: str, mount: Mount | None, in_container: bool) -> CheckResult:
    """Describe the file system of ``folder``, and whether files outlive container and machine."""
    name = "file-system"
    if mount is None:
        return ok(name, f"{folder}: kind unknown")
    found = f"{folder}: {mount.kind} on {mount.point}"
    if mount.kind in IN_MEMORY:
        found += ", which is memory: lost when the machine or container ends"
        return warn(name, found, "give a --workspace on a disk")
    if mount.kind in OVERLAY and in_container:
        remedy = "mount a folder of the host (docker run -v /host/runs:/runs) as --workspace"
        return warn(name, f"{found}: lost when the container is removed", remedy)
    if mount.kind in NETWORK or mount.kind.startswith("fuse."):
        found += ", over a network or FUSE: shared by all nodes that mount it"
    return ok(name, found)


_MAX_CLOCK_STEP_S = 0.1


@dataclass(frozen=True)
class Instant:
    """Both clocks at one moment, in seconds."""

    wall_s: float
    monotonic_s: float

    @classmethod
    def now(cls) -> Instant:
        """Read both clocks."""
        return cls(time.time(), time.monotonic())


def check_clock(start: Instant, end: Instant) -> list[CheckResult]:
    """Compare the progress of both clocks between two moments, and check the year."""
    name = "clock"
    date = datetime.fromtimestamp(end.wall_s, timezone.utc)
    elapsed_s = end.monotonic_s - start.monotonic_s
    step_s = end.wall_s - start.wall_s - elapsed_s
    found = f"{date:%Y-%m-%d %H:%M:%S} UTC; {1000 * step_s:+.1f} ms against the monotonic clock"
    found += f" in {elapsed_s:.1f} s"
    result = ok(name, found)
    if not 2025 <= date.year <= 2100:
        remedy = "set the clock: it names folders and reports (timedatectl set-ntp true)"
        result = fail(name, found, remedy)
    elif abs(step_s) > _MAX_CLOCK_STEP_S:
        remedy = "let only one service set the clock (chronyd or ntpd), gradually, not in steps"
        result = warn(name, found, remedy)
    offset = "not measured: the offset to true time needs a time server"
    return [result, skipped("clock-offset", offset)]


def check_container(kind: str, image: str, mounts: list[Mount]) -> CheckResult:
    """Describe the container, its image (see `image_text`), and whether its root is writable."""
    root = mount_of(Path("/"), mounts)
    access = "read-only" if root is not None and root.is_read_only else "writable"
    container = f"{kind} container".lstrip() if kind or image else "no container"
    if image:
        container += f", {image}"
    return ok("container", f"{container}; root file system {access}")


def check_user(kind: str, user_id: int) -> CheckResult:
    """Judge the user: torch's compiler needs a name; files written by root belong to root."""
    name, found = "user", f"id {user_id}"
    try:
        found += f" ({getpass.getuser()})"
    except (KeyError, OSError):  # OSError from Python 3.13 on
        remedy = f"set one: docker run -e USER=user{user_id}, or mount /etc/passwd read-only"
        return warn(name, f"{found} has no name, which torch's compiler needs", remedy)
    if kind in ("docker", "podman") and user_id == 0:
        found += "; what it writes to mounted folders belongs to root"
    return ok(name, found)


def check_home(environ: Mapping[str, str]) -> CheckResult:
    """Write a file to the home folder, which caches use."""
    name, home = "home", environ.get("HOME")
    remedy = (
        "mount a writable home folder, or set HOME to one (for the demo data set and compiled "
        "code; IMAGE_CLASSIFICATION_CACHE moves the first)"
    )
    if not home:
        return warn(name, "HOME is not set", remedy)
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=home):
            return ok(name, f"{home} is writable")
    except OSError as error:
        return warn(name, f"{home}: {os.strerror(error.errno or 0)}", remedy)
