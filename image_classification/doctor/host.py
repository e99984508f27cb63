"""Checks of the host: memory, limits, CPUs, the workspace's disk, the container, the clock."""

from __future__ import annotations

import getpass
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from image_classification.core.host import (
    IN_MEMORY,
    NETWORK,
    OVERLAY,
    container_kind,
    image_text,
    mount_of,
    parse_cpu_list,
    read_cgroup,
    read_mounts,
)
from image_classification.core.units import size
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult, fail, judge, ok, skipped, warn

if TYPE_CHECKING:
    from image_classification.doctor.checks import Context

DOCKER_DEFAULT_SHM_BYTES = 64 * 2**20
_SHM_REMEDY = (
    "docker run --ipc=host, or --shm-size={size} (Kubernetes: an emptyDir of medium Memory on "
    "/dev/shm)"
)


def check_shared_memory(context: Context) -> Iterator[CheckResult]:
    """Compare ``/dev/shm`` with what the loader needs there."""
    yield judge_shared_memory(context.needs.loader_shm_bytes, Path("/dev/shm"))


def judge_shared_memory(needed_bytes: int | None, folder: Path) -> CheckResult:
    """Compare ``folder`` with what the loader puts there; None: without a platform.

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


def check_memory(context: Context) -> Iterator[CheckResult]:
    """Compare the memory available without swapping with the least that a run needs."""
    needs, cgroup = context.needs, read_cgroup()
    available = psutil.virtual_memory().available
    if cgroup.memory_headroom_bytes is not None:
        available = min(available, cgroup.memory_headroom_bytes)
    found = f"{size(available)} available"
    if cgroup.memory_bytes is not None:
        found += f" (limit of the control group: {size(cgroup.memory_bytes)})"
    needed_bytes = 0
    if context.checkpoint_bytes is not None:
        needed_bytes = needs.loader_shm_bytes or 0
        # Weights, gradients and the optimizer's values, which a CPU platform has on the host.
        if needs.device == "cpu":
            needed_bytes += 2 * needs.num_devices * context.checkpoint_bytes
    if needed_bytes:
        found += f"; a run needs at least {size(needed_bytes)}"
    remedy = (
        "free memory, raise the container's limit (docker run --memory), or lower batch.per_device "
        "and data.workers"
    )
    yield judge("memory", found, available, needed_bytes, 1.5 * needed_bytes, remedy)


_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_NUMA_NODES = Path("/sys/devices/system/node")
_MIN_OPEN_FILES = 1024
_MIN_STACK_BYTES = 8 * 2**20
_LIMITS = {
    "open-files": (resource.RLIMIT_NOFILE, "ulimit -n 65536 (Docker: --ulimit nofile=65536)"),
    "locked-memory": (resource.RLIMIT_MEMLOCK, "ulimit -l unlimited (Docker: --ulimit memlock=-1)"),
    "stack": (resource.RLIMIT_STACK, "ulimit -s 65536 (Docker: --ulimit stack=67108864)"),
    "processes": (
        resource.RLIMIT_NPROC,
        "ulimit -u (Docker: --pids-limit, Slurm and Kubernetes: the cluster's own limit)",
    ),
    "core-files": (resource.RLIMIT_CORE, "ulimit -c 0 (Docker: --ulimit core=0)"),
}


def check_limits(context: Context) -> Iterator[CheckResult]:
    """Yield open-files, locked-memory, stack, processes, core-files: the soft limits."""
    needs, has_gpus = context.needs, context.num_gpus > 0
    limits: dict[str, float] = {}
    for name, (kind, _) in _LIMITS.items():
        limit = resource.getrlimit(kind)[0]
        limits[name] = math.inf if limit == resource.RLIM_INFINITY else limit
    files, locked, stack, processes, core = limits.values()

    def text(value: float, unit: Callable[[int], str] = "{:,}".format) -> str:
        return "unlimited" if value == math.inf else unit(int(value))

    def result(
        name: str, found: str, value: float, fail_below: float, warn_below: float
    ) -> CheckResult:
        return judge(name, found, value, fail_below, warn_below, _LIMITS[name][1])

    found = f"{text(files)} per process; a run needs up to {needs.open_files:,}"
    yield result("open-files", found, files, needs.open_files, _MIN_OPEN_FILES)
    found = text(locked, size)
    if not has_gpus:
        found += " (relevant only with GPUs)"
    elif locked < math.inf:
        found += "; NCCL registers more memory than this with network cards"
    yield result("locked-memory", found, locked, 0, math.inf if has_gpus else 0)
    yield result("stack", text(stack, size), stack, 0, _MIN_STACK_BYTES)
    cgroup = read_cgroup()
    if cgroup.processes is not None:
        processes = min(processes, cgroup.processes)
    num_cpus = len(os.sched_getaffinity(0))
    threads = 2 * num_cpus + 8 * needs.num_devices + 2 * needs.loader_threads
    found = f"{text(processes)} for the user or container; a run has about {threads:,} with its "
    yield result("processes", f"{found}threads", processes, threads, 2 * threads)
    pattern = _CORE_PATTERN.read_text().strip() if _CORE_PATTERN.is_file() else ""
    if core == 0:
        yield ok("core-files", "none are written when a process crashes")
    elif pattern.startswith("|"):
        yield ok("core-files", f"{text(core, size)}, received by {pattern[1:].split()[0]}")
    else:
        found = f"{text(core, size)}, written as {pattern or 'core'}: a crash can fill the disk"
        yield warn("core-files", found, _LIMITS["core-files"][1])


def check_cpus(context: Context) -> Iterator[CheckResult]:
    """Yield cpus, numa, omp-threads."""
    allowed = os.sched_getaffinity(0)
    yield _check_cores(context, len(allowed))
    texts = {int(f.name[4:]): (f / "cpulist").read_text() for f in _NUMA_NODES.glob("node[0-9]*")}
    nodes = {node: cpus for node in sorted(texts) if (cpus := parse_cpu_list(texts[node]))}
    if nodes:
        parts = [f"node {node}: {len(cpus & allowed)}" for node, cpus in nodes.items()]
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} with CPUs"
        yield ok("numa", f"{count}; usable here: {', '.join(parts)}")
    else:
        yield skipped("numa", "the system does not list its NUMA nodes")
    yield _check_omp_threads(context, len(allowed))


def _check_cores(context: Context, allowed: int) -> CheckResult:
    """Compare the logical CPUs that this job may use with those of the machine and of a run."""
    name, needs, quota = "cpus", context.needs, read_cgroup().cpus
    found, usable = f"{allowed} of {os.cpu_count() or allowed} may be used", float(allowed)
    if quota is not None and quota < allowed:
        usable = quota
        found += f", with a quota of {quota:g} CPUs (control group)"
    if not needs.platform:
        return ok(name, found)
    processes, loaders = needs.num_devices, needs.loader_threads
    found += f"; a run has {processes} + {loaders} loader processes or threads"
    if usable < processes + loaders and (processes > 1 or usable < loaders):
        remedy = "let the job use more (docker run --cpus, --cpuset-cpus; srun -c), or lower "
        return warn(name, found, f"{remedy}data.workers")
    return ok(name, found)


def _check_omp_threads(context: Context, allowed: int) -> CheckResult:
    """Judge ``OMP_NUM_THREADS``, which every process of a run inherits."""
    name, processes = "omp-threads", context.needs.num_devices
    share = max(1, allowed // processes)
    text = os.environ.get("OMP_NUM_THREADS")
    if text is None:
        plural = "s" if share > 1 else ""
        return ok(name, f"OMP_NUM_THREADS is not set: {share} thread{plural} per process")
    found = f"OMP_NUM_THREADS={text}"
    if not text.split(",")[0].isdecimal():
        return warn(name, f"{found}, which is not a number", "unset OMP_NUM_THREADS")
    threads = int(text.split(",")[0])
    remedy = f"unset it, or export OMP_NUM_THREADS={share}"
    if threads * processes > allowed and processes > 1:
        if threads == 1:  # fewer threads are impossible
            remedy = f"use at most {allowed} devices per node (--devices N)"
        return warn(name, f"{found} in {processes} processes on {allowed} CPUs", remedy)
    if context.needs.device == "cpu" and threads < share:
        return warn(name, f"{found}, but {share} CPUs per process may be used", remedy)
    return ok(name, found)


_WRITE_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20
_MAX_WRITE_S = 5.0
_MIN_FREE_BYTES = 2**30
_MIN_FREE_FILES = 1000
_SLOW_CHECKPOINT_S = 15.0


@dataclass(frozen=True)
class WriteTest:
    """Result of `write_and_sync`. free_files: None if the file system has no such limit."""

    num_bytes: int
    time_s: float
    free_bytes: int
    free_files: int | None


def check_disk(context: Context) -> Iterator[CheckResult]:
    """Yield file-system, disk-space, disk-speed of the workspace or its first parent there is."""
    workspace = context.workspace.absolute()
    folder = next(path for path in (workspace, *workspace.parents) if path.exists())
    yield _check_file_system(folder)
    try:
        test = context.probe(write_and_sync, str(folder))
    except ProbeError as error:
        remedy = "give a --workspace that is writable and has space"
        yield fail("disk-space", f"cannot write to {folder}: {error}", remedy)
        return
    yield _check_disk_space(context, folder, test)
    bytes_per_s = test.num_bytes / test.time_s
    found = (
        f"{bytes_per_s / 1e6:,.0f} MB/s ({size(test.num_bytes)} with fsync in "
        f"{1000 * test.time_s:,.0f} ms)"
    )
    time_s = 0.0
    if context.checkpoint_bytes is not None:
        time_s = context.checkpoint_bytes / bytes_per_s
        found += f": {time_s:.1f} s per checkpoint"
    remedy = "give a --workspace on a faster disk: a job that is stopped often has 30 s to save"
    is_slow = time_s > _SLOW_CHECKPOINT_S
    yield warn("disk-speed", found, remedy) if is_slow else ok("disk-speed", found)


def _check_file_system(folder: Path) -> CheckResult:
    """Describe the file system of ``folder``, and whether files outlive container and machine."""
    name, mounts = "file-system", read_mounts()
    mount = mount_of(folder, mounts)
    if mount is None:
        return ok(name, f"{folder}: kind unknown")
    found = f"{folder}: {mount.kind} on {mount.point}"
    if mount.kind in IN_MEMORY:
        found += ", which is memory: lost when the machine or container ends"
        return warn(name, found, "give a --workspace on a disk")
    if mount.kind in OVERLAY and container_kind(os.environ, mounts):
        remedy = "mount a folder of the host (docker run -v /host/runs:/runs) as --workspace"
        return warn(name, f"{found}: lost when the container is removed", remedy)
    if mount.kind in NETWORK or mount.kind.startswith("fuse."):
        found += ", over a network or FUSE: shared by all nodes that mount it"
    return ok(name, found)


def _check_disk_space(context: Context, folder: Path, test: WriteTest) -> CheckResult:
    """Compare the free space with the checkpoints kept, the best one and one being written."""
    name, remedy = "disk-space", "give another --workspace, or free some space"
    found = f"{size(test.free_bytes)} free for {folder}"
    if test.free_files is not None and test.free_files < _MIN_FREE_FILES:
        return fail(name, f"{found}, but only {test.free_files} more files", remedy)
    if context.checkpoint_bytes is None:
        return judge(name, found, test.free_bytes, 0, _MIN_FREE_BYTES, remedy)
    kept = context.needs.kept
    count = (1 if kept is None else kept) + 2
    needed = count * context.checkpoint_bytes
    found += f"; {context.largest_model} needs {size(needed)} ({count} checkpoints"
    found += " and more, since all are kept)" if kept is None else ")"
    return judge(name, found, test.free_bytes, needed, 2 * needed, remedy)


def write_and_sync(folder: str) -> WriteTest:
    """Probe: write random bytes, wait until they are on the disk, and delete them.

    Stops after some seconds.

    Raises:
        OSError: the bytes cannot be written.
    """
    chunk = os.urandom(_CHUNK_BYTES)  # some disks compress zeros
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder, buffering=0) as file:
        start_s = time.perf_counter()
        while file.tell() < _WRITE_BYTES and time.perf_counter() - start_s < _MAX_WRITE_S:
            file.write(chunk)
        os.fsync(file.fileno())
        time_s = time.perf_counter() - start_s
        num_bytes = file.tell()
    status = os.statvfs(folder)
    free_files = status.f_favail if status.f_files else None
    return WriteTest(num_bytes, time_s, shutil.disk_usage(folder).free, free_files)


def check_container(context: Context) -> Iterator[CheckResult]:
    """Yield container, user, home."""
    mounts = read_mounts()
    kind, image = container_kind(os.environ, mounts), image_text(os.environ)
    root = mount_of(Path("/"), mounts)
    access = "read-only" if root is not None and root.is_read_only else "writable"
    container = f"{kind} container".lstrip() if kind or image else "no container"
    if image:
        container += f", {image}"
    yield ok("container", f"{container}; root file system {access}")
    yield _check_user(kind, os.getuid())
    yield _check_home()


def _check_user(kind: str, user_id: int) -> CheckResult:
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


def _check_home() -> CheckResult:
    """Write a file to the home folder, which caches use."""
    name, home = "home", os.environ.get("HOME")
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


_MAX_CLOCK_STEP_S = 0.1


def check_clock(context: Context) -> Iterator[CheckResult]:
    """Yield clock and clock-offset: the progress of both clocks since the start, and the year."""
    now_s, elapsed_s = time.time(), time.monotonic() - context.start_monotonic_s
    date = datetime.fromtimestamp(now_s, timezone.utc)
    step_s = now_s - context.start_wall_s - elapsed_s
    found = f"{date:%Y-%m-%d %H:%M:%S} UTC; {1000 * step_s:+.1f} ms against the monotonic clock"
    found += f" in {elapsed_s:.1f} s"
    if not 2025 <= date.year <= 2100:
        remedy = "set the clock: it names folders and reports (timedatectl set-ntp true)"
        yield fail("clock", found, remedy)
    elif abs(step_s) > _MAX_CLOCK_STEP_S:
        remedy = "let only one service set the clock (chronyd or ntpd), gradually, not in steps"
        yield warn("clock", found, remedy)
    else:
        yield ok("clock", found)
    yield skipped("clock-offset", "not measured: the offset to true time needs a time server")
