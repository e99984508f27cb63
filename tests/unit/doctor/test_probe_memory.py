from pathlib import Path

import pytest

from image_classification.core.host import CgroupLimits
from image_classification.doctor.host import (
    available_memory_bytes,
    check_memory,
    check_shared_memory,
    judge_shared_memory,
)

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("total", "free", "needed", "status"),
    [
        (64 * MIB, 64 * MIB, None, "warn"),
        (64 * MIB, 64 * MIB, 0, "warn"),
        (64 * MIB, 64 * MIB, 65 * MIB, "fail"),
        (8 * GIB, 1 * GIB, 2 * GIB, "fail"),
        (8 * GIB, 8 * GIB, 2 * GIB, "ok"),
        (8 * GIB, 8 * GIB, 0, "ok"),
        (8 * GIB, 8 * GIB, None, "ok"),
    ],
)
def test_shared_memory_is_judged_by_what_is_free(
    total: int, free: int, needed: int | None, status: str
) -> None:
    check = judge_shared_memory("/dev/shm", total, free, needed)
    assert check.status == status
    assert ("--ipc=host" in check.remedy) == (status != "ok")


def test_the_remedy_asks_for_a_quarter_more_than_is_needed() -> None:
    check = judge_shared_memory("/dev/shm", 64 * MIB, 64 * MIB, 4 * GIB)
    assert "--shm-size=5g" in check.remedy and "4.0 GiB" in check.found


def test_a_missing_folder_fails(tmp_path: Path) -> None:
    check = check_shared_memory(1, tmp_path / "shm")
    assert check.status == "fail" and "No such file" in check.found


def test_the_smaller_of_kernel_and_control_group_counts() -> None:
    limits = CgroupLimits(2, 4 * GIB, 1 * GIB)
    check = check_memory(100 * GIB, limits, 2 * GIB)
    assert check.status == "fail"
    assert "1.0 GiB can be taken" in check.found and "4.0 GiB" in check.found
    assert check_memory(100 * GIB, CgroupLimits(), 2 * GIB).status == "ok"
    assert check_memory(2 * GIB, CgroupLimits(), 2 * GIB - 1).status == "warn"
    assert check_memory(2 * GIB, CgroupLimits(), None).status == "ok"
    assert check_memory(None, CgroupLimits(), 1).status == "skipped"


def test_available_memory(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       2048 kB\n")
    assert available_memory_bytes(tmp_path) == 2 * MIB
    assert available_memory_bytes(tmp_path / "elsewhere") is None
