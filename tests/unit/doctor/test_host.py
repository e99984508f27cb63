import getpass
import os
import resource
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from image_classification.core.host import CgroupLimits, Mount
from image_classification.doctor import host
from image_classification.doctor.host import WriteTest, judge_shared_memory, write_and_sync
from image_classification.doctor.report import CheckResult
from image_classification.doctor.requirements import RunNeeds
from tests.support.doctor import context

MIB, GIB = 2**20, 2**30
ONE_PROCESS = RunNeeds(platform="CPU", device="cpu")


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Limits of the control group, by field of `CgroupLimits`; none by default."""
    limits: dict[str, Any] = {}
    monkeypatch.setattr(host, "read_cgroup", lambda: CgroupLimits(2, **limits))
    return limits


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
def test_cores(
    allowed: int,
    quota: float | None,
    processes: int,
    loader_threads: int | None,
    status: str,
    cgroup: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)))
    monkeypatch.setattr(os, "cpu_count", lambda: 80)
    if quota is not None:
        cgroup["cpus"] = quota
    doctor = context()
    if loader_threads is not None:
        doctor.needs = RunNeeds("P", num_devices=processes, loader_threads=loader_threads)
    check = next(host.check_cpus(doctor))
    assert check.status == status and check.found.startswith(f"{allowed} of 80 may be used")
    assert ("quota of 4 CPUs" in check.found) == (quota is not None)
    assert ("--cpuset-cpus" in check.remedy) == (status == "warn")


def test_numa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_NUMA_NODES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4})
    _, check, _ = host.check_cpus(context())
    assert check.status == "skipped"
    for node, text in ((1, "4-7,12-15"), (0, "0-3,8-11"), (2, "")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(text + "\n")
    _, check, _ = host.check_cpus(context())
    assert check.found == "2 nodes with CPUs; usable here: node 0: 2, node 1: 1"


@pytest.mark.parametrize(
    ("text", "processes", "device", "status"),
    [
        (None, 8, "cuda", "ok"),
        ("1", 8, "cuda", "ok"),
        ("1", 1, "cpu", "warn"),
        ("8", 1, "cpu", "ok"),
        ("4", 8, "cuda", "warn"),
        ("many", 1, "cuda", "warn"),
        ("4,2", 2, "cuda", "ok"),
    ],
)
def test_omp_threads(
    text: str | None, processes: int, device: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    doctor = context()
    doctor.needs = RunNeeds("P", device, num_devices=processes)
    *_, check = host.check_cpus(doctor)
    assert (check.name, check.status) == ("omp-threads", status)


def test_omp_remedy_never_repeats_the_present_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for text, remedy in (("1", "at most 2 devices"), ("4", "export OMP_NUM_THREADS=1")):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        doctor = context()
        doctor.needs = RunNeeds("DGX1V", "cuda", num_devices=8)
        *_, check = host.check_cpus(doctor)
        assert check.status == "warn" and remedy in check.remedy


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
    check = judge_shared_memory(needed, Path("/dev/shm"))
    assert check.status == status
    assert ("--ipc=host" in check.remedy) == (status != "ok")


def test_remedy_for_shared_memory_is_a_quarter_more_than_needed(tmp_path: Path) -> None:
    check = judge_shared_memory(4 * 2**50, tmp_path)
    assert f"--shm-size={5 * 2**20}g" in check.remedy and "4096.0 TiB" in check.found


def test_missing_folder_for_shared_memory(tmp_path: Path) -> None:
    check = judge_shared_memory(1, tmp_path / "shm")
    assert check.status == "fail" and "No such file" in check.found


@pytest.mark.parametrize(
    ("available", "headroom", "checkpoint", "status"),
    [
        (100 * GIB, 1 * GIB, 1 * GIB, "fail"),
        (100 * GIB, None, 1 * GIB, "ok"),
        (2 * GIB, None, 1 * GIB - 1, "warn"),
        (2 * GIB, None, None, "ok"),
    ],
)
def test_memory(
    available: int,
    headroom: int | None,
    checkpoint: int | None,
    status: str,
    cgroup: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    if headroom is not None:
        cgroup.update(memory_bytes=4 * GIB, memory_headroom_bytes=headroom)
    doctor = context()
    doctor.needs, doctor.checkpoint_bytes = ONE_PROCESS, checkpoint
    (check,) = host.check_memory(doctor)
    assert check.status == status
    assert ("1.0 GiB available (limit of the control group: 4.0 GiB)" in check.found) == (
        headroom is not None
    )


UNLIMITED = resource.RLIM_INFINITY
GOOD = {
    resource.RLIMIT_NOFILE: 65536,
    resource.RLIMIT_MEMLOCK: UNLIMITED,
    resource.RLIMIT_STACK: 64 * MIB,
    resource.RLIMIT_NPROC: UNLIMITED,
    resource.RLIMIT_CORE: 0,
}


def limits(
    monkeypatch: pytest.MonkeyPatch, changed: dict[int, int], has_gpus: bool = True
) -> dict[str, CheckResult]:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: ({**GOOD, **changed}[kind], UNLIMITED))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(46)))  # 100 threads
    doctor = context()
    doctor.needs = RunNeeds(open_files=400)
    monkeypatch.setattr(type(doctor), "num_gpus", int(has_gpus))
    checks = {check.name: check for check in host.check_limits(doctor)}
    assert list(checks) == ["open-files", "locked-memory", "stack", "processes", "core-files"]
    return checks


@pytest.mark.parametrize(
    ("name", "kind", "value", "status", "remedy"),
    [
        ("open-files", resource.RLIMIT_NOFILE, 399, "fail", "ulimit -n"),
        ("open-files", resource.RLIMIT_NOFILE, 1000, "warn", "ulimit -n"),
        ("open-files", resource.RLIMIT_NOFILE, UNLIMITED, "ok", ""),
        ("locked-memory", resource.RLIMIT_MEMLOCK, 65536, "warn", "memlock=-1"),
        ("stack", resource.RLIMIT_STACK, 2**20, "warn", "stack=67108864"),
        ("processes", resource.RLIMIT_NPROC, 99, "fail", "ulimit -u"),
        ("processes", resource.RLIMIT_NPROC, 150, "warn", "ulimit -u"),
        ("core-files", resource.RLIMIT_CORE, UNLIMITED, "warn", "core=0"),
    ],
)
def test_each_limit(
    name: str,
    kind: int,
    value: int,
    status: str,
    remedy: str,
    cgroup: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "_CORE_PATTERN", tmp_path / "absent")
    checks = limits(monkeypatch, {kind: value})
    check = checks.pop(name)
    assert check.status == status and remedy in check.remedy
    assert ("unlimited" in check.found) == (value == UNLIMITED)
    assert {check.status for check in checks.values()} == {"ok"}


def test_process_limit_of_the_control_group(
    cgroup: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup["processes"] = 50
    assert limits(monkeypatch, {})["processes"].status == "fail"


def test_locked_memory_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = limits(monkeypatch, {resource.RLIMIT_MEMLOCK: 65536}, has_gpus=False)
    assert checks["locked-memory"].status == "ok"


def test_core_files_that_a_program_receives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_CORE_PATTERN", tmp_path / "core_pattern")
    (tmp_path / "core_pattern").write_text("|/usr/share/apport/apport %p\n")
    check = limits(monkeypatch, {resource.RLIMIT_CORE: UNLIMITED})["core-files"]
    assert check.status == "ok" and check.found.endswith("received by /usr/share/apport/apport")


def test_writing_leaves_no_file(tmp_path: Path) -> None:
    _, space, speed = host.check_disk(context(workspace=tmp_path / "runs" / "not" / "yet"))
    assert f"free for {tmp_path}" in space.found and "64.0 MiB with fsync" in speed.found
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_writable() -> None:
    _, space = host.check_disk(context(workspace=Path("/proc/runs")))
    assert space.status == "fail" and space.found.startswith("cannot write to /proc: ")


@pytest.fixture
def file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, file_limit: None) -> None:
    with pytest.raises(OSError, match="File too large"):
        write_and_sync(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def disk(
    test: WriteTest, checkpoint_bytes: int | None = GIB, kept: int | None = 1
) -> list[CheckResult]:
    doctor = context(test)
    doctor.largest_model, doctor.checkpoint_bytes = "resnet50", checkpoint_bytes
    doctor.needs = RunNeeds(kept=kept)
    return list(host.check_disk(doctor))


def written(
    free_bytes: int = 100 * GIB, time_s: float = 0.1, files: int | None = None
) -> WriteTest:
    return WriteTest(64 * MIB, time_s, free_bytes, files)


@pytest.mark.parametrize(
    ("free_gib", "kept", "status"),
    [(2.9, 1, "fail"), (3.1, 1, "warn"), (6.1, 1, "ok"), (6.1, 9, "fail"), (2.9, None, "fail")],
)
def test_disk_space_for_checkpoints(free_gib: float, kept: int | None, status: str) -> None:
    _, check, _ = disk(written(int(free_gib * GIB)), kept=kept)
    assert check.status == status and "resnet50 needs" in check.found


def test_disk_space_without_a_platform_and_without_free_files() -> None:
    statuses = [disk(written(free), None)[1].status for free in (GIB // 2, 100 * GIB)]
    assert statuses == ["warn", "ok"]
    _, check, _ = disk(written(files=3))
    assert check.status == "fail" and "3 more files" in check.found


def test_disk_speed() -> None:
    fast = disk(written(time_s=0.064))[2]
    assert fast.status == "ok" and "1,049 MB/s" in fast.found
    assert fast.found.endswith("1.0 s per checkpoint")
    slow = disk(written(time_s=2.0))[2]
    assert slow.status == "warn" and slow.found.endswith("32.0 s per checkpoint")
    assert disk(written(time_s=2.0), None)[2].status == "ok"


@pytest.mark.parametrize(
    ("kind", "container", "status", "words"),
    [
        ("ext4", "docker", "ok", "ext4"),
        ("tmpfs", "", "warn", "memory"),
        ("overlay", "docker", "warn", "container is removed"),
        ("overlay", "", "ok", "overlay"),
        ("nfs4", "docker", "ok", "network"),
        ("fuse.sshfs", "docker", "ok", "network"),
        (None, "docker", "ok", "unknown"),
    ],
)
def test_file_systems(
    kind: str | None, container: str, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [] if kind is None else [Mount("/", kind, "/", False)]
    monkeypatch.setattr(host, "read_mounts", lambda: mounts)
    monkeypatch.setattr(host, "container_kind", lambda environ, mounts: container)
    check = disk(written())[0]
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
def test_clock(
    start_s: float, end_s: float, status: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor = context()
    doctor.start_wall_s, doctor.start_monotonic_s = start_s, 50.0
    clocks = SimpleNamespace(time=lambda: end_s, monotonic=lambda: 58.0)
    monkeypatch.setattr(host, "time", clocks)
    clock, offset = host.check_clock(doctor)
    assert clock.status == status
    assert clock.found.startswith(found) and clock.found.endswith(" in 8.0 s")
    assert offset.status == "skipped" and "not measured" in offset.found


def test_clocks_start_with_the_context() -> None:
    doctor = context()
    assert 0 <= time.time() - doctor.start_wall_s < 60
    assert 0 <= time.monotonic() - doctor.start_monotonic_s < 60


@pytest.mark.parametrize(
    ("kind", "image", "is_read_only", "found"),
    [
        ("docker", "", True, "docker container; root file system read-only"),
        ("", "", False, "no container; root file system writable"),
        ("podman", "image 0.1 on a:1", False, "podman container, image 0.1 on a:1; root file "),
        ("", "image 0.1 on a:1", False, "container, image 0.1 on a:1; root file "),
    ],
)
def test_container_and_image(
    kind: str, image: str, is_read_only: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "read_mounts", lambda: [Mount("/", "overlay", "/", is_read_only)])
    monkeypatch.setattr(host, "container_kind", lambda environ, mounts: kind)
    monkeypatch.setattr(host, "image_text", lambda environ: image)
    check, _, _ = host.check_container(context())
    assert check.found.startswith(found)


@pytest.mark.parametrize(("kind", "user_id"), [("docker", 0), ("docker", 1000), ("", 0)])
def test_files_of_root_in_docker(kind: str, user_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "container_kind", lambda environ, mounts: kind)
    monkeypatch.setattr(os, "getuid", lambda: user_id)
    _, check, _ = host.check_container(context())
    assert ("belongs to root" in check.found) == (kind == "docker" and user_id == 0)


def test_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", no_name)
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    _, check, _ = host.check_container(context())
    assert check.status == "warn" and "USER=user1234" in check.remedy


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(host.check_container(context()))[2].status == "ok"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    missing = list(host.check_container(context()))[2]
    assert missing.status == "warn" and os.strerror(2) in missing.found
    monkeypatch.delenv("HOME")
    assert list(host.check_container(context()))[2].status == "warn"
