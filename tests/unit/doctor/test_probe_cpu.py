from pathlib import Path

import pytest

from image_classification.core.host import CgroupLimits
from image_classification.doctor.host import (
    CpuNeeds,
    check_cores,
    check_numa,
    check_omp_threads,
    numa_nodes,
)


def test_cores_are_compared_with_the_loader() -> None:
    dgx = CpuNeeds(processes=8, loader_threads=64)
    assert check_cores(80, 80, CgroupLimits(), dgx).status == "ok"
    few = check_cores(16, 80, CgroupLimits(), dgx)
    assert few.status == "warn" and "16 of 80" in few.found and "--cpuset-cpus" in few.remedy
    assert check_cores(16, 80, CgroupLimits(), None).status == "ok"
    # One process and its one worker on two CPUs, and on one.
    assert check_cores(2, 2, CgroupLimits(), CpuNeeds(1, 1)).status == "ok"
    assert check_cores(1, 2, CgroupLimits(), CpuNeeds(1, 1)).status == "ok"


def test_time_that_the_container_is_not_given_counts_as_missing() -> None:
    check = check_cores(80, 80, CgroupLimits(2, cpus=4.0), CpuNeeds(8, 64))
    assert check.status == "warn" and "for the time of 4" in check.found


def test_numa_nodes(tmp_path: Path) -> None:
    for node, text in ((0, "0-3,8-11"), (1, "4-7,12-15"), (2, "")):
        folder = tmp_path / "sys/devices/system/node" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(text + "\n")
    nodes = numa_nodes(tmp_path)
    assert nodes == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7, 12, 13, 14, 15}, 2: set()}
    check = check_numa(nodes, {0, 1, 4})
    assert check.found == "2 nodes with CPUs; usable here: node 0: 2, node 1: 1"
    assert check_numa({}, {0}).status == "skipped"


@pytest.mark.parametrize(
    ("text", "processes", "on_cpu", "status"),
    [
        (None, 8, False, "ok"),
        ("1", 8, False, "ok"),
        ("1", 1, True, "warn"),
        ("8", 1, True, "ok"),
        ("4", 8, False, "warn"),
        ("many", 1, False, "warn"),
        ("4,2", 2, False, "ok"),
    ],
)
def test_omp_threads(text: str | None, processes: int, on_cpu: bool, status: str) -> None:
    environ = {} if text is None else {"OMP_NUM_THREADS": text}
    assert check_omp_threads(environ, 8, processes, on_cpu).status == status
