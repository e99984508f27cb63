"""Several processes over gloo train like one process, and stop and fail together."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import (
    LAUNCH,
    FinalState,
    Jobs,
    free_port,
    job_environ,
    read_losses,
    read_records,
)

pytestmark = pytest.mark.slow

MIXED = ["--mixup=0.2", "--label-smoothing=0.1", "--use-ema=0.9", "--no-checkpoints"]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(None, tmp_path, fresh=True)
    yield jobs
    jobs.close()


@pytest.fixture
def half_batches(small_arguments: list[str]) -> list[str]:
    """Four images per device and micro-batch, for a global batch of eight."""
    return [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]


def test_two_processes_train_like_one(jobs, half_batches, tmp_path):
    """One process accumulates two micro-batches, or two processes take one each.

    The micro-batches hold the same images with the same augmentation and mixing, and batch
    statistics are those of a micro-batch in both cases, so the training losses must agree. BN's
    running statistics may differ (rank 0 sees half the micro-batches), and so may validation.
    """
    one, two, joined = tmp_path / "one", tmp_path / "two", tmp_path / "joined"
    jobs.run(half_batches, one, *MIXED)
    jobs.run(half_batches, two, *MIXED, processes=2)
    assert read_losses(one) == pytest.approx(read_losses(two), abs=1e-4)
    assert len(read_losses(two)) == 12

    # Under torchrun, launch.py joins the world instead of starting processes.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*torchrun, str(LAUNCH), *half_batches, *MIXED, f"--workspace={joined}"],
        env=job_environ(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_losses(joined) == read_losses(two)

    # Fifteen images on two ranks in batches of four: each is counted once.
    for folder in (one, two, joined):
        validations = [r.values for r in read_records(folder) if "validation" in r.kind]
        assert {v["images"] for v in validations} == {15}
        assert all(
            v["top1"] * 15 / 100 == pytest.approx(round(v["top1"] * 15 / 100)) for v in validations
        )


def test_stopped_by_signals_and_resumed(jobs, half_batches, tmp_path):
    """Two processes with loader workers; one process is tests/faults/test_signals.py's."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [a.replace("schedule.epochs=3", "schedule.epochs=5") for a in half_batches]
    # Loader workers must neither die of the signal nor outlive the run.
    arguments = [a.replace("data.workers=0", "data.workers=1") for a in arguments]
    arguments += ["--training-only", "--set=run.save_every=50 epochs"]
    jobs.run(arguments, whole, processes=2)

    for number, step in ((signal.SIGTERM, 3), (signal.SIGUSR1, 9)):
        job = jobs.start(arguments, stopped, "--resume=auto", processes=2)
        job.wait_for_record("step", step)
        job.send_signal(number)
        assert job.wait() == 75, job.stderr
        assert "--resume auto" in job.stderr
        assert job.error_lines() == []

    jobs.run(arguments, stopped, "--resume=auto", processes=2)
    FinalState.read(stopped).assert_equal(FinalState.read(whole))


def test_error_of_one_rank_is_one_line(jobs, half_batches, own_image_folder, tmp_path):
    arguments = [*half_batches[:4], str(own_image_folder), *half_batches[5:]]
    broken = own_image_folder / "train" / "cat" / "003.JPEG"
    broken.write_bytes(b"not an image")
    job = jobs.start(arguments, tmp_path / "run", processes=2)
    assert job.wait() == 2, job.stderr
    (error,) = job.error_lines()
    assert str(broken) in error
