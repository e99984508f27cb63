"""Checks of the processors: how many this job may use, NUMA nodes, threads.

Checks of shared memory and main memory.

Checks of the limits a shell or container sets: ulimit and the control group's processes.

Checks of the clock.

Checks of what this process is inside of: the container, its user, its home folder.
"""

from __future__ import annotations

import getpass
import os
import resource
import tempfile
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from image_classification.core.host import CgroupLimits, Mount, mount_of, parse_cpu_list
from image_classification.core.units import size_text
from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    skipped,
    warn,
)


@dataclass(frozen=True)
class CpuNeeds:
    """processes: ranks of this node. loader_threads: loader processes or threads of all."""

    processes: int
    loader_threads: int


def check_cores(allowed: int, present: int, cgroup: CgroupLimits, needs: CpuNeeds | None) -> Check:
    """Compare the logical CPUs this job may use with those there are, and with a run's loader."""
    name = "cpus"
    found = f"{allowed} of {present} may be used"
    usable = float(allowed)
    if cgroup.cpus is not None and cgroup.cpus < allowed:
        usable = cgroup.cpus
        found += f", for the time of {cgroup.cpus:g} (limit of the control group)"
    if needs is None:
        return ok(name, found)
    asked = needs.processes + needs.loader_threads
    found += f"; a run has {needs.processes} + {needs.loader_threads} loader processes or threads"
    if usable < asked and (needs.processes > 1 or usable < needs.loader_threads):
        return warn(
            name,
            found,
            "let the job use more (docker run --cpus, --cpuset-cpus; srun -c), or lower "
            "data.workers",
        )
    return ok(name, found)


def numa_nodes(root: Path = Path("/")) -> dict[int, set[int]]:
    """Return NUMA node -> its logical CPUs; empty where the system does not say."""
    nodes = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        nodes[int(folder.name.removeprefix("node"))] = parse_cpu_list(
            (folder / "cpulist").read_text()
        )
    return dict(sorted(nodes.items()))


def check_numa(nodes: Mapping[int, Set[int]], allowed: Set[int]) -> Check:
    """Say how this job's CPUs lie on the NUMA nodes."""
    name = "numa"
    with_cpus = {node: cpus for node, cpus in nodes.items() if cpus}
    if not with_cpus:
        return skipped(name, "the system does not tell its NUMA nodes")
    parts = [f"node {node}: {len(cpus & allowed)}" for node, cpus in with_cpus.items()]
    count = f"{len(with_cpus)} node{'s' if len(with_cpus) > 1 else ''} with CPUs"
    return ok(name, f"{count}; usable here: {', '.join(parts)}")


def check_omp_threads(
    environ: Mapping[str, str], allowed: int, processes: int, computes_on_cpu: bool
) -> Check:
    """Judge ``OMP_NUM_THREADS``, which every process of a run inherits."""
    name, text = "omp-threads", environ.get("OMP_NUM_THREADS")
    share = max(1, allowed // processes)
    if text is None:
        threads_text = f"{share} thread{'s' if share > 1 else ''} a process"
        return ok(name, f"OMP_NUM_THREADS is not set: {threads_text}")
    found = f"OMP_NUM_THREADS={text}"
    if not text.split(",")[0].isdecimal():
        return warn(name, f"{found}, which is no number", "unset OMP_NUM_THREADS")
    threads = int(text.split(",")[0])
    if threads * processes > allowed and processes > 1:
        found += f" in {processes} processes on {allowed} CPUs"
        return warn(name, found, f"unset it, or export OMP_NUM_THREADS={share}")
    if computes_on_cpu and threads < share:
        found += f", though {share} CPUs a process may be used"
        return warn(name, found, f"unset it, or export OMP_NUM_THREADS={share}")
    return ok(name, found)


def allowed_cpus() -> set[int]:
    """Return the logical CPUs this process may run on."""
    return os.sched_getaffinity(0)


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


_LEAST_OPEN_FILES = 1024
_LEAST_STACK_BYTES = 8 * 2**20
UNLIMITED = resource.RLIM_INFINITY

KINDS = {
    "open-files": resource.RLIMIT_NOFILE,
    "locked-memory": resource.RLIMIT_MEMLOCK,
    "stack": resource.RLIMIT_STACK,
    "processes": resource.RLIMIT_NPROC,
    "core-files": resource.RLIMIT_CORE,
}


@dataclass(frozen=True)
class LimitNeeds:
    """What a run takes of the limits.

    open_files: descriptors of one process. threads: processes and threads of all ranks of a node.
    has_gpus: whether locked memory matters.
    """

    open_files: int
    threads: int
    has_gpus: bool


def read_soft_limits() -> dict[str, int]:
    """Return each of `KINDS` as it holds now; `UNLIMITED` where there is no limit."""
    return {name: resource.getrlimit(kind)[0] for name, kind in KINDS.items()}


def core_pattern(root: Path = Path("/")) -> str:
    """Return where the kernel writes core files to; "" where it does not say."""
    file = root / "proc/sys/kernel/core_pattern"
    return file.read_text().strip() if file.is_file() else ""


def check_limits(
    soft: Mapping[str, int], cgroup: CgroupLimits, needs: LimitNeeds, pattern: str
) -> list[Check]:
    """Judge the soft limits of `read_soft_limits`."""
    return [
        _open_files(soft["open-files"], needs),
        _locked_memory(soft["locked-memory"], needs),
        _stack(soft["stack"]),
        _processes(soft["processes"], cgroup.processes, needs),
        _core_files(soft["core-files"], pattern),
    ]


def _bytes(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else size_text(limit)


def _count(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else f"{limit:,}"


def _open_files(limit: int, needs: LimitNeeds) -> Check:
    name, remedy = "open-files", "ulimit -n 65536 (Docker: --ulimit nofile=65536)"
    found = f"{_count(limit)} a process; a run's takes up to {needs.open_files:,}"
    if limit == UNLIMITED or limit >= max(_LEAST_OPEN_FILES, needs.open_files):
        return ok(name, found)
    return (fail if limit < needs.open_files else warn)(name, found, remedy)


def _locked_memory(limit: int, needs: LimitNeeds) -> Check:
    name, found = "locked-memory", _bytes(limit)
    if not needs.has_gpus:
        return ok(name, f"{found} (matters with GPUs only)")
    if limit == UNLIMITED:
        return ok(name, found)
    return warn(
        name,
        f"{found}; NCCL registers memory with network cards beyond any such limit",
        "ulimit -l unlimited (Docker: --ulimit memlock=-1)",
    )


def _stack(limit: int) -> Check:
    name, found = "stack", _bytes(limit)
    if limit == UNLIMITED or limit >= _LEAST_STACK_BYTES:
        return ok(name, found)
    return warn(name, found, "ulimit -s 65536 (Docker: --ulimit stack=67108864)")


def _processes(limit: int, of_group: int | None, needs: LimitNeeds) -> Check:
    name = "processes"
    limits = [n for n in (limit if limit != UNLIMITED else None, of_group) if n is not None]
    tightest = min(limits, default=None)
    found = "unlimited" if tightest is None else f"{tightest:,}"
    found += f" for the user or container; a run takes about {needs.threads:,} with its threads"
    remedy = "ulimit -u (Docker: --pids-limit, Slurm and Kubernetes: the cluster's own limit)"
    if tightest is None or tightest >= 2 * needs.threads:
        return ok(name, found)
    return (fail if tightest < needs.threads else warn)(name, found, remedy)


def _core_files(limit: int, pattern: str) -> Check:
    name = "core-files"
    if limit == 0:
        return ok(name, "none are written when a process crashes")
    if pattern.startswith("|"):
        return ok(name, f"{_bytes(limit)}, taken by {pattern[1:].split()[0]}")
    return warn(
        name,
        f"{_bytes(limit)}, written as {pattern or 'core'}: a crash of a process can fill the disk",
        "ulimit -c 0 (Docker: --ulimit core=0)",
    )


_LEAST_YEAR = 2025
_MOST_YEAR = 2100
_STEP_S = 0.1


@dataclass(frozen=True)
class Instant:
    """Both clocks at one moment, in seconds."""

    wall_s: float
    monotonic_s: float

    @classmethod
    def now(cls) -> Instant:
        """Read both clocks."""
        return cls(time.time(), time.monotonic())


def check_clock(start: Instant, end: Instant) -> list[Check]:
    """Compare how far both clocks went between two moments, and look at the year."""
    name = "clock"
    at = datetime.fromtimestamp(end.wall_s, timezone.utc)
    elapsed_s = end.monotonic_s - start.monotonic_s
    off_s = end.wall_s - start.wall_s - elapsed_s
    found = f"{at:%Y-%m-%d %H:%M:%S} UTC; {1000 * off_s:+.1f} ms against the monotonic clock"
    found += f" in {elapsed_s:.1f} s"
    offset = skipped("clock-offset", "not measured: the offset to true time needs a time server")
    if not _LEAST_YEAR <= at.year <= _MOST_YEAR:
        remedy = "set the clock: folders and reports are named by it (timedatectl set-ntp true)"
        return [fail(name, found, remedy), offset]
    if abs(off_s) > _STEP_S:
        remedy = "let one service alone keep the clock (chronyd or ntpd), and slew, not step"
        return [warn(name, found, remedy), offset]
    return [ok(name, found), offset]


_CACHE_REMEDY = (
    "mount a home folder that can be written, or set HOME to one (the demo data set and compiled "
    "code are kept there; IMAGE_CLASSIFICATION_CACHE moves the first)"
)


def check_container(kind: str, image: str, mounts: list[Mount]) -> Check:
    """Say which container this is, of which image, and whether its root can be written.

    image: see `image_text`.
    """
    of_root = mount_of(Path("/"), mounts)
    is_read_only = of_root.is_read_only if of_root is not None else False
    where = f"{kind} container".lstrip() if kind or image else "no container"
    if image:
        where += f", {image}"
    found = f"{where}; root file system {'read-only' if is_read_only else 'writable'}"
    return ok("container", found)


def check_user(kind: str, user_id: int) -> Check:
    """Judge the user: one without a name breaks torch's compiler, root owns what it writes."""
    name, found = "user", f"id {user_id}"
    try:
        found += f" ({getpass.getuser()})"
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return warn(
            name,
            f"{found} has no name, which torch's compiler asks for",
            f"set one: docker run -e USER=user{user_id}, or mount /etc/passwd read-only",
        )
    if kind in ("docker", "podman") and user_id == 0:
        found += "; what it writes to mounted folders belongs to root"
    return ok(name, found)


def check_home(environ: Mapping[str, str]) -> Check:
    """Write to the home folder, where caches go."""
    name = "home"
    home = environ.get("HOME")
    if not home:
        return warn(name, "HOME is not set", _CACHE_REMEDY)
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=home):
            pass
    except OSError as error:
        return warn(name, f"{home}: {os.strerror(error.errno or 0)}", _CACHE_REMEDY)
    return ok(name, f"{home} can be written")
