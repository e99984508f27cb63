"""Loader processes, shared memory and the data set itself, lost in mid-epoch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from image_classification.data.loaders.workers import NO_SHARED_MEMORY

FULL = os.environ.get("FAULTS") == "full"
BACKENDS = ("pytorch", "dali-cpu")
WITHIN_S = 60.0
SAVING = ("--training-only", "--save-every=2 steps")


def with_backend(arguments: list[str], backend: str) -> list[str]:
    if backend == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    return [*arguments, f"--data-backend={backend}", "--set=data.workers=2"]


def loader_processes(job) -> list[int]:
    """The pids of the job's loader processes: children of its fork server."""
    tree = {p: int(_stat(p)[1]) for p in job.processes() if _stat(p)}
    servers = [p for p in tree if "forkserver" in _command(p)]
    return [p for p, parent in tree.items() if parent in servers]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_loader_process_killed(jobs, arguments, undisturbed, learnt, full, seen, tmp_path) -> None:
    """SIGKILL to a loader process of a running job."""
    times = 5 if full else 1
    # An epoch may be read ahead to its end: a start gets as far as the next one.
    arguments = [*arguments, f"--set=schedule.epochs={times + 1}"]
    folder = tmp_path / "run"
    for n in range(times):
        loading = [*with_backend(arguments, "pytorch"), "--set=data.prefetch=1", "--resume=auto"]
        job = jobs.start(loading, folder, *SAVING)
        before = len(steps(job))
        assert job.until(lambda j=job, b=before: len(steps(j)) > b), job.stderr
        killed = time.monotonic()
        os.kill(loader_processes(job)[n % 2], signal.SIGKILL)
        assert job.finish() == 2, job.stderr
        assert time.monotonic() - killed < WITHIN_S
        (error,) = job.error_lines()
        assert "a data loader process died" in error
        assert "docker run --ipc=host" in error
        job.assert_nothing_left()
    jobs.run(arguments, folder, *SAVING, "--resume=auto")
    learnt.of(folder).assert_equal(undisturbed(arguments))
    seen("refused: `a data loader process died …`, exit 2, continued bit for bit", times)


def steps(job) -> list[int]:
    return [r.step for r in job.records() if r.kind == "step"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_set_vanishes(jobs, arguments, learnt, seen, tmp_path, backend) -> None:
    """The data set's folder goes away in mid-epoch, as with a lost mount, and comes back."""
    arguments = with_backend(arguments, backend)
    images = tmp_path / "images"
    source = next(a for a in arguments if a.startswith("/"))
    shutil.copytree(source, images)
    # An epoch that is not read ahead to its end at once.
    for image in list((images / "train").rglob("*.JPEG")):
        for n in range(20):
            os.link(image, image.with_name(f"{image.stem}-{n}.JPEG"))
    arguments = [str(images) if a == source else a for a in arguments]
    arguments += ["--set=schedule.epochs=1", "--set=schedule.warmup_epochs=0"]
    folder, away = tmp_path / "run", tmp_path / "away"
    job = jobs.start(arguments, folder, *SAVING, "--set=data.prefetch=1")
    job.until_recorded("checkpoint", 2)
    images.rename(away)
    gone = time.monotonic()
    assert job.finish() == 2, job.stderr
    assert time.monotonic() - gone < WITHIN_S
    (error,) = job.error_lines()
    assert "has gone" in error
    assert "check its disk or its mount" in error
    job.assert_nothing_left()
    away.rename(images)
    end = learnt.of(folder).step + 2
    if backend == "pytorch":
        arguments = [a.replace("data.workers=2", "data.workers=0") for a in arguments]
    jobs.run(arguments, folder, *SAVING, "--resume=auto", f"--set=run.max_steps={end}")
    assert learnt.of(folder).step == end
    seen("refused: `the data set's folder … has gone …`, exit 2, continued when it was back")


NO_MOUNTS = (
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0
)


@pytest.mark.skipif(not FULL, reason="the short form is test_shared_memory.py")
@pytest.mark.skipif(NO_MOUNTS, reason="needs root and mount namespaces, for a /dev/shm of 64 MB")
@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_memory_of_64_mb(jobs, arguments, seen, tmp_path, backend) -> None:
    """/dev/shm has 64 MB, docker's default, and the batches under way need 400 MB."""
    arguments = with_backend(arguments, backend)
    # A batch of 32 images of 1,024 px is 100 MB; two loader processes prepare two each.
    sizes = {"data.image_size": 1024, "data.resize": 1024, "data.prefetch": 2}
    sizes |= {"batch.per_device": 32, "batch.global": 32}
    arguments = [*arguments, *(f"--set={key}={value}" for key, value in sizes.items())]
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    job = jobs.start(
        arguments,
        tmp_path / "run",
        "--mode=benchmark_data",
        prefix=["unshare", "-m", "--propagation=private", "sh", "-c", small, "sh"],
    )
    started = time.monotonic()
    code = job.finish(timeout_s=WITHIN_S + 60.0)
    job.assert_nothing_left()
    if backend == "dali-cpu":
        assert code == 0, job.stderr
        seen("not affected: DALI's threads need no shared memory")
        return
    assert code == 2, job.stderr
    assert time.monotonic() - started < WITHIN_S + 60.0
    (error,) = job.error_lines()
    assert error == f"error: {NO_SHARED_MEMORY}"
    assert "Bus error" not in job.stderr
    seen("refused: `shared memory ran out …`, exit 2, no traceback")
