import resource
from pathlib import Path

import pytest

from image_classification.core.host import CgroupLimits
from image_classification.doctor.check import Check
from image_classification.doctor.host import (
    UNLIMITED,
    LimitNeeds,
    check_limits,
    core_pattern,
    read_soft_limits,
)

GOOD = {
    "open-files": 65536,
    "locked-memory": UNLIMITED,
    "stack": 64 * 2**20,
    "processes": UNLIMITED,
    "core-files": 0,
}
NEEDS = LimitNeeds(open_files=400, threads=100, has_gpus=True)


def judge(
    cgroup: CgroupLimits | None = None, pattern: str = "core", **soft: int
) -> dict[str, Check]:
    limits = {**GOOD, **{name.replace("_", "-"): value for name, value in soft.items()}}
    checks = check_limits(limits, cgroup or CgroupLimits(), NEEDS, pattern)
    assert [c.name for c in checks] == list(GOOD)
    return {check.name: check for check in checks}


def test_good_limits() -> None:
    assert {check.status for check in judge().values()} == {"ok"}


@pytest.mark.parametrize(
    ("name", "value", "status", "remedy"),
    [
        ("open-files", 399, "fail", "ulimit -n"),
        ("open-files", 1000, "warn", "ulimit -n"),
        ("open-files", UNLIMITED, "ok", ""),
        ("locked-memory", 65536, "warn", "memlock=-1"),
        ("stack", 2**20, "warn", "stack=67108864"),
        ("processes", 99, "fail", "ulimit -u"),
        ("processes", 150, "warn", "ulimit -u"),
        ("core-files", UNLIMITED, "warn", "core=0"),
    ],
)
def test_each_limit(name: str, value: int, status: str, remedy: str) -> None:
    checks = judge(**{name.replace("-", "_"): value})
    assert checks.pop(name).status == status
    assert {check.status for check in checks.values()} == {"ok"}
    assert remedy in judge(**{name.replace("-", "_"): value})[name].remedy


def test_the_control_groups_processes_count_too() -> None:
    assert judge(CgroupLimits(2, processes=50))["processes"].status == "fail"


def test_locked_memory_matters_with_gpus_only() -> None:
    needs = LimitNeeds(400, 100, has_gpus=False)
    soft = {**GOOD, "locked-memory": 65536}
    by_name = {c.name: c for c in check_limits(soft, CgroupLimits(), needs, "core")}
    assert by_name["locked-memory"].status == "ok"


def test_core_files_that_a_program_takes_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/core_pattern").write_text("|/usr/share/apport/apport %p\n")
    pattern = core_pattern(tmp_path)
    assert judge(pattern=pattern, core_files=UNLIMITED)["core-files"].status == "ok"
    assert core_pattern(tmp_path / "proc") == ""


def test_the_soft_limits_are_the_processs() -> None:
    soft = read_soft_limits()
    assert list(soft) == list(GOOD)
    assert soft["open-files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
