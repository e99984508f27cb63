from pathlib import Path

import pytest

from image_classification.doctor.collectives import (
    NUM_BYTES,
    AllReduce,
    check_collective,
    collective_remedy,
)
from image_classification.doctor.probe import Call, call_together


@pytest.mark.slow
def test_three_processes_over_gloo(tmp_path: Path) -> None:
    target = "image_classification.doctor.collectives:all_reduce"
    meeting = str(tmp_path / "ranks")
    calls = [Call(target, (rank, 3, "gloo", meeting, 60.0, 2**20)) for rank in range(3)]
    measured: list[AllReduce] = call_together(calls, 120)
    assert all(m.is_right and m.large_s > 0 and m.round_trip_s > 0 for m in measured)
    check = check_collective("gloo", measured, "processes on the CPU")
    assert check.status == "ok" and "1 MiB" in check.found


def measured(large_s: float, is_right: bool = True) -> AllReduce:
    return AllReduce(0.0005, large_s, NUM_BYTES, is_right)


def test_the_slowest_rank_counts_and_units_are_decimal() -> None:
    check = check_collective("gloo", [measured(0.05), measured(0.1)], "processes")
    assert check.found == (
        "all_reduce over 2 processes: 4 bytes 0.50 ms, 64 MiB 100.0 ms, 671 MB/s"
    )


def test_slow_nccl_warns_and_slow_gloo_does_not() -> None:
    slow = [measured(0.1), measured(0.1)]
    assert check_collective("nccl", slow, "GPUs").status == "warn"
    assert check_collective("gloo", slow, "processes").status == "ok"
    assert check_collective("nccl", [measured(0.01)] * 2, "GPUs").status == "ok"


def test_a_wrong_sum_fails() -> None:
    check = check_collective("nccl", [measured(0.01), measured(0.01, False)], "GPUs")
    assert check.status == "fail" and "the sum is wrong" in check.found
    assert check.remedy == collective_remedy("nccl") != collective_remedy("gloo")
