"""Checks of the limits a shell or container sets: ulimit and the control group's processes."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image_classification.core.checkup import Check, fail, ok, warn
from image_classification.core.sizes import size_text
from image_classification.hardware.cgroup import CgroupLimits

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
