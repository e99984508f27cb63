"""Checks of the processors: how many this job may use, NUMA nodes, threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from image_classification.core.checkup import Check, ok, skipped, warn
from image_classification.hardware.cgroup import CgroupLimits
from image_classification.hardware.cpulist import parse_cpu_list


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
