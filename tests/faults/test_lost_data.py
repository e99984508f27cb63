"""Loader processes, shared memory or the data set lost during an epoch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from image_classification.data.loaders.pytorch import NO_SHARED_MEMORY
from tests.support.jobs import FinalState

FULL = os.environ.get("FAULTS") == "full"
BACKENDS = ("pytorch", "dali-cpu")
WITHIN_S = 60.0
SAVING = ("--training-only", "--save-every=2 steps")


def with_backend(arguments: list[str], backend: str) -> list[str]:
    if backend == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    return [*arguments, f"--data-backend={backend}", "--set=data.workers=2"]


def loader_processes(job) -> list[int]:
    """Return the pids of the loader processes: children of the server that the job started."""
    (pid,) = job.pids
    servers = psutil.Process(pid).children()
    return [process.pid for server in servers for process in server.children()]


def test_loader_process_killed(
    jobs, arguments, reference_state, full, record_outcome, tmp_path
) -> None:
    """A loader process of a running job is killed with SIGKILL."""
    times = 5 if full else 1
    # Prefetching may reach the end of an epoch: each start gets into the next one.
    arguments = [*arguments, f"--set=schedule.epochs={times + 1 if full else 12}"]
    folder = tmp_path / "run"
    for n in range(times):
        loading = [*with_backend(arguments, "pytorch"), "--set=data.prefetch=1", "--resume=auto"]
        job = jobs.start(loading, folder, *SAVING)
        before = len(steps(job))
        assert job.wait_until(lambda j=job, b=before: len(steps(j)) > b), job.stderr
        killed = time.monotonic()
        os.kill(loader_processes(job)[n % 2], signal.SIGKILL)
        assert job.wait() == 2, job.stderr
        assert time.monotonic() - killed < WITHIN_S
        (error,) = job.error_lines()
        assert "a data loader process died" in error
        assert "docker run --ipc=host" in error
        job.assert_no_process_left()
    jobs.run(arguments, folder, *SAVING, "--resume=auto")
    FinalState.read(folder).assert_equal(reference_state(arguments))
    record_outcome("refused: `a data loader process died …`, exit 2; resumed bit-equal", times)


def steps(job) -> list[int]:
    return [r.step for r in job.records() if r.kind == "step"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_set_vanishes(jobs, arguments, record_outcome, tmp_path, backend) -> None:
    """The data set's folder disappears during an epoch, as with a lost mount, and returns."""
    arguments = with_backend(arguments, backend)
    images = tmp_path / "images"
    source = next(a for a in arguments if a.startswith("/"))
    shutil.copytree(source, images)
    # Enough images that prefetching does not reach the end of the epoch.
    for image in list((images / "train").rglob("*.JPEG")):
        for n in range(20):
            os.link(image, image.with_name(f"{image.stem}-{n}.JPEG"))
    arguments = [str(images) if a == source else a for a in arguments]
    arguments += ["--set=schedule.epochs=1", "--set=schedule.warmup_epochs=0"]
    folder, moved = tmp_path / "run", tmp_path / "moved"
    job = jobs.start(arguments, folder, *SAVING, "--set=data.prefetch=1")
    job.wait_for_record("checkpoint", 2)
    images.rename(moved)
    moved_at = time.monotonic()
    assert job.wait() == 2, job.stderr
    assert time.monotonic() - moved_at < WITHIN_S
    (error,) = job.error_lines()
    assert "has gone" in error
    assert "check its disk or its mount" in error
    job.assert_no_process_left()
    moved.rename(images)
    end = FinalState.read(folder).step + 2
    if backend == "pytorch":
        arguments = [a.replace("data.workers=2", "data.workers=0") for a in arguments]
    jobs.run(arguments, folder, *SAVING, "--resume=auto", f"--set=run.max_steps={end}")
    assert FinalState.read(folder).step == end
    record_outcome(
        "refused: `the data set's folder … has gone …`, exit 2; resumed when it was back"
    )


NO_MOUNTS = (
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0
)


@pytest.mark.skipif(not FULL, reason="the short form is in tests/unit/data/loaders/test_pytorch.py")
@pytest.mark.skipif(NO_MOUNTS, reason="needs root and mount namespaces, for a /dev/shm of 64 MB")
@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_memory_of_64_mb(jobs, arguments, record_outcome, tmp_path, backend) -> None:
    """/dev/shm has 64 MB, Docker's default, and the prefetched batches need 400 MB."""
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
    code = job.wait(timeout_s=WITHIN_S + 60.0)
    job.assert_no_process_left()
    if backend == "dali-cpu":
        assert code == 0, job.stderr
        record_outcome("not affected: DALI uses threads, which need no shared memory")
        return
    assert code == 2, job.stderr
    assert time.monotonic() - started < WITHIN_S + 60.0
    (error,) = job.error_lines()
    assert error == f"error: {NO_SHARED_MEMORY}"
    assert "Bus error" not in job.stderr
    record_outcome("refused: `shared memory ran out …`, exit 2, no traceback")
