from pathlib import Path

import pytest

from image_classification.doctor.collectives import (
    NUM_BYTES,
    REMEDIES,
    AllReduce,
    all_reduce,
    check_collective,
)
from image_classification.doctor.probe import call_together


@pytest.mark.slow
def test_three_processes_over_gloo(tmp_path: Path) -> None:
    arguments = [(rank, 3, "gloo", str(tmp_path / "store"), 2**20) for rank in range(3)]
    measured = [AllReduce(**answer) for answer in call_together(all_reduce, arguments, 120)]
    assert all(m.is_correct and m.large_s > 0 and m.small_s > 0 for m in measured)
    check = check_collective("gloo", measured, "processes on the CPU")
    assert check.status == "ok" and "1 MiB" in check.found


def measured(large_s: float, is_correct: bool = True) -> AllReduce:
    return AllReduce(0.0005, large_s, NUM_BYTES, is_correct)


def test_the_slowest_rank_counts() -> None:
    check = check_collective("gloo", [measured(0.05), measured(0.1)], "processes")
    assert check.found == (
        "all_reduce over 2 processes: 4 bytes 0.50 ms, 64 MiB 100.0 ms, 671 MB/s"
    )


@pytest.mark.parametrize(
    ("backend", "large_s", "status"),
    [("nccl", 0.1, "warn"), ("gloo", 0.1, "ok"), ("nccl", 0.01, "ok")],
)
def test_only_slow_nccl_warns(backend: str, large_s: float, status: str) -> None:
    assert check_collective(backend, [measured(large_s)] * 2, "ranks").status == status


def test_a_wrong_sum_fails() -> None:
    check = check_collective("nccl", [measured(0.01), measured(0.01, False)], "GPUs")
    assert check.status == "fail" and "the sum is wrong" in check.found
    assert check.remedy == REMEDIES["nccl"]
