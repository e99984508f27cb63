import errno
import getpass
import os
import resource
import signal
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from image_classification.core.host import CgroupLimits, Mount
from image_classification.doctor.host import (
    UNLIMITED,
    Instant,
    WriteTest,
    check_clock,
    check_container,
    check_cores,
    check_disk_space,
    check_disk_speed,
    check_file_system,
    check_home,
    check_limits,
    check_memory,
    check_numa,
    check_omp_threads,
    check_shared_memory,
    check_user,
    core_pattern,
    existing_folder,
    numa_nodes,
    read_soft_limits,
    write_and_sync,
)
from image_classification.doctor.report import CheckResult

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("allowed", "quota", "processes", "loader_threads", "status"),
    [
        (80, None, 8, 64, "ok"),
        (16, None, 8, 64, "warn"),
        (80, 4.0, 8, 64, "warn"),
        (16, None, 8, None, "ok"),  # no platform
        (2, None, 1, 1, "ok"),
        (1, None, 1, 1, "ok"),
    ],
)
def test_cores_are_compared_with_the_loader(
    allowed: int, quota: float | None, processes: int, loader_threads: int | None, status: str
) -> None:
    cgroup = CgroupLimits(2, cpus=quota)
    check = check_cores(allowed, 80, cgroup, processes, loader_threads)
    assert check.status == status and f"{allowed} of 80" in check.found
    assert ("quota of 4 CPUs" in check.found) == (quota is not None)
    assert ("--cpuset-cpus" in check.remedy) == (status == "warn")


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
def test_shared_memory(
    total: int, free: int, needed: int | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = SimpleNamespace(f_blocks=total // 4096, f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: answer)
    check = check_shared_memory(needed)
    assert check.status == status
    assert ("--ipc=host" in check.remedy) == (status != "ok")


def test_the_remedy_for_shared_memory_is_a_quarter_more_than_needed(tmp_path: Path) -> None:
    check = check_shared_memory(4 * 2**50, tmp_path)
    assert f"--shm-size={5 * 2**20}g" in check.remedy and "4096.0 TiB" in check.found


def test_a_missing_folder_for_shared_memory_fails(tmp_path: Path) -> None:
    check = check_shared_memory(1, tmp_path / "shm")
    assert check.status == "fail" and "No such file" in check.found


@pytest.mark.parametrize(
    ("available", "headroom", "needed", "status"),
    [
        (100 * GIB, 1 * GIB, 2 * GIB, "fail"),
        (100 * GIB, None, 2 * GIB, "ok"),
        (2 * GIB, None, 2 * GIB - 1, "warn"),
        (2 * GIB, None, None, "ok"),
    ],
)
def test_memory_is_the_smaller_of_kernel_and_control_group(
    available: int, headroom: int | None, needed: int | None, status: str
) -> None:
    limit = None if headroom is None else 4 * GIB
    check = check_memory(available, CgroupLimits(2, limit, headroom), needed)
    assert check.status == status
    assert ("1.0 GiB available (limit of the control group: 4.0 GiB)" in check.found) == (
        headroom is not None
    )


GOOD = {
    "open-files": 65536,
    "locked-memory": UNLIMITED,
    "stack": 64 * MIB,
    "processes": UNLIMITED,
    "core-files": 0,
}


def limits(
    name: str = "stack",
    value: int = UNLIMITED,
    cgroup: CgroupLimits | None = None,
    has_gpus: bool = True,
    pattern: str = "core",
) -> dict[str, CheckResult]:
    soft = {**GOOD, name: value}
    checks = check_limits(soft, cgroup or CgroupLimits(), 400, 100, has_gpus, pattern)
    assert [c.name for c in checks] == list(GOOD)
    return {check.name: check for check in checks}


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
    checks = limits(name, value)
    check = checks.pop(name)
    assert check.status == status and remedy in check.remedy
    assert ("unlimited" in check.found) == (value == UNLIMITED)
    assert {check.status for check in checks.values()} == {"ok"}


def test_the_process_limit_of_the_control_group() -> None:
    assert limits(cgroup=CgroupLimits(2, processes=50))["processes"].status == "fail"


def test_locked_memory_is_relevant_only_with_gpus() -> None:
    assert limits("locked-memory", 65536, has_gpus=False)["locked-memory"].status == "ok"


def test_core_files_that_a_program_receives_are_ok(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/core_pattern").write_text("|/usr/share/apport/apport %p\n")
    check = limits("core-files", UNLIMITED, pattern=core_pattern(tmp_path))["core-files"]
    assert check.status == "ok" and check.found.endswith("received by /usr/share/apport/apport")
    assert core_pattern(tmp_path / "proc") == ""


def test_soft_limits_of_this_process() -> None:
    soft = read_soft_limits()
    assert list(soft) == list(GOOD)
    assert soft["open-files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def written(
    free_bytes: int = 100 * GIB, time_s: float = 0.1, files: int | None = None
) -> WriteTest:
    return WriteTest("/runs", 64 * MIB, time_s, free_bytes, files)


def test_writing_leaves_no_file(tmp_path: Path) -> None:
    result = write_and_sync(str(tmp_path / "runs" / "not" / "yet"), num_bytes=5_000_000)
    assert result.folder == str(tmp_path)
    assert result.num_bytes == 5_000_000 and result.time_s > 0 and result.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_writable() -> None:
    with pytest.raises(OSError) as raised:
        write_and_sync("/proc/runs")
    assert raised.value.errno in (errno.EACCES, errno.ENOENT, errno.EPERM, errno.EROFS)


@pytest.fixture
def file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, file_limit: None) -> None:
    with pytest.raises(OSError) as raised:
        write_and_sync(str(tmp_path))
    assert raised.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert existing_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("free_gib", "kept", "status"),
    [(2.9, 1, "fail"), (3.1, 1, "warn"), (6.1, 1, "ok"), (6.1, 9, "fail"), (2.9, None, "fail")],
)
def test_disk_space_for_checkpoints(free_gib: float, kept: int | None, status: str) -> None:
    check = check_disk_space(written(int(free_gib * GIB)), GIB, kept, "resnet50")
    assert check.status == status and "resnet50 needs" in check.found


def test_disk_space_without_a_platform_and_without_free_files() -> None:
    assert check_disk_space(written(GIB // 2), None, 1, "").status == "warn"
    assert check_disk_space(written(), None, 1, "").status == "ok"
    check = check_disk_space(written(files=3), None, 1, "")
    assert check.status == "fail" and "3 more files" in check.found


def test_disk_speed_is_judged_by_the_time_of_a_checkpoint() -> None:
    fast = check_disk_speed(written(time_s=0.064), GIB)
    assert fast.status == "ok" and "1,049 MB/s" in fast.found
    assert fast.found.endswith("1.0 s per checkpoint")
    slow = check_disk_speed(written(time_s=2.0), GIB)
    assert slow.status == "warn" and slow.found.endswith("32.0 s per checkpoint")
    assert check_disk_speed(written(time_s=2.0), None).status == "ok"


@pytest.mark.parametrize(
    ("kind", "in_container", "status", "words"),
    [
        ("ext4", True, "ok", "ext4"),
        ("tmpfs", False, "warn", "memory"),
        ("overlay", True, "warn", "container is removed"),
        ("overlay", False, "ok", "overlay"),
        ("nfs4", True, "ok", "network"),
        ("fuse.sshfs", True, "ok", "network"),
        (None, True, "ok", "unknown"),
    ],
)
def test_file_systems(kind: str | None, in_container: bool, status: str, words: str) -> None:
    mount = None if kind is None else Mount("/runs", kind, "/", False)
    check = check_file_system("/runs", mount, in_container)
    assert check.status == status and words in check.found


NOON = datetime(2026, 10, 1, 12, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("start_s", "end_s", "status", "found"),
    [
        (NOON, NOON + 8.001, "ok", "2026-10-01 12:00:08 UTC; +1.0 ms against the monotonic clock"),
        (NOON, NOON - 3600.0, "warn", "2026-10-01 11:00:00 UTC; -3608000.0 ms"),
        (100.0, 108.0, "fail", "1970-01-01"),
    ],
    ids=["steady", "stepped", "never set"],
)
def test_clock(start_s: float, end_s: float, status: str, found: str) -> None:
    clock, offset = check_clock(Instant(start_s, 50.0), Instant(end_s, 58.0))
    assert clock.status == status
    assert clock.found.startswith(found) and clock.found.endswith(" in 8.0 s")
    assert offset.status == "skipped" and "not measured" in offset.found


def test_now() -> None:
    first, second = Instant.now(), Instant.now()
    assert second.monotonic_s >= first.monotonic_s and first.wall_s > NOON / 2


@pytest.mark.parametrize(
    ("kind", "image", "is_read_only", "found"),
    [
        ("docker", "", True, "docker container; root file system read-only"),
        ("", "", False, "no container; root file system writable"),
        ("podman", "image 0.1 on a:1", False, "podman container, image 0.1 on a:1; root file "),
        ("", "image 0.1 on a:1", False, "container, image 0.1 on a:1; root file "),
    ],
)
def test_container_and_image(kind: str, image: str, is_read_only: bool, found: str) -> None:
    mounts = [Mount("/", "overlay", "/", is_read_only)]
    assert check_container(kind, image, mounts).found.startswith(found)


def test_files_of_root_in_docker() -> None:
    assert "belongs to root" in check_user("docker", 0).found
    assert "belongs to root" not in check_user("", 0).found


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", no_name)
    check = check_user("docker", 1234)
    assert check.status == "warn" and "USER=user1234" in check.remedy


def test_home(tmp_path: Path) -> None:
    assert check_home({"HOME": str(tmp_path)}).status == "ok"
    assert list(tmp_path.iterdir()) == []
    missing = check_home({"HOME": str(tmp_path / "absent")})
    assert missing.status == "warn" and os.strerror(2) in missing.found
    assert check_home({}).status == "warn"
