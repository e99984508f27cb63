import errno
from pathlib import Path

import pytest

from image_classification.core.host import Mount
from image_classification.doctor.disk import (
    Written,
    check_file_system,
    check_space,
    check_speed,
    existing_folder,
    write_and_sync,
)

GIB = 2**30


def written(free_bytes: int = 100 * GIB, time_s: float = 0.1, files: int | None = None) -> Written:
    return Written("/runs", 64 * 2**20, time_s, free_bytes, files)


def test_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    result = write_and_sync(str(tmp_path / "runs" / "not" / "yet"), num_bytes=5_000_000)
    assert result.folder == str(tmp_path)
    assert result.num_bytes == 5_000_000 and result.time_s > 0 and result.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(OSError) as raised:
        write_and_sync("/proc/runs")
    assert raised.value.errno in (errno.EACCES, errno.ENOENT, errno.EPERM, errno.EROFS)


def test_a_file_that_cannot_grow_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        _write_with_a_file_limit(tmp_path)
    assert raised.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def _write_with_a_file_limit(folder: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        write_and_sync(str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert existing_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("free_gib", "kept", "status"),
    [(2.9, 1, "fail"), (3.1, 1, "warn"), (6.1, 1, "ok"), (6.1, 9, "fail"), (2.9, None, "fail")],
)
def test_space_for_the_kept_the_best_and_the_one_being_written(
    free_gib: float, kept: int | None, status: str
) -> None:
    check = check_space(written(int(free_gib * GIB)), GIB, kept, "resnet50")
    assert check.status == status and "resnet50 needs" in check.found


def test_space_without_a_run_and_without_files() -> None:
    assert check_space(written(GIB // 2), None, 1, "").status == "warn"
    assert check_space(written(), None, 1, "").status == "ok"
    check = check_space(written(files=3), None, 1, "")
    assert check.status == "fail" and "3 more files" in check.found


def test_speed_is_judged_by_the_time_of_a_checkpoint() -> None:
    fast = check_speed(written(time_s=0.064), GIB)
    assert fast.status == "ok" and "1,049 MB/s" in fast.found and "1.0 s a checkpoint" in fast.found
    slow = check_speed(written(time_s=2.0), GIB)
    assert slow.status == "warn" and "32.0 s a checkpoint" in slow.found
    assert check_speed(written(time_s=2.0), None).status == "ok"


@pytest.mark.parametrize(
    ("kind", "in_container", "status", "words"),
    [
        ("ext4", True, "ok", "ext4"),
        ("tmpfs", False, "warn", "memory"),
        ("overlay", True, "warn", "container is removed"),
        ("overlay", False, "ok", "overlay"),
        ("nfs4", True, "ok", "network"),
        ("fuse.sshfs", True, "ok", "network"),
    ],
)
def test_what_outlives_a_run(kind: str, in_container: bool, status: str, words: str) -> None:
    check = check_file_system("/runs", Mount("/runs", kind, "/", False), in_container)
    assert check.status == status and words in check.found


def test_a_file_system_nobody_tells_of() -> None:
    assert check_file_system("/runs", None, True).status == "ok"
