"""A rank killed or stopped in a world of two to four ranks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import FinalState, Jobs, read_losses, read_records

FULL = os.environ.get("FAULTS") == "full"
long_form = pytest.mark.skipif(not FULL, reason="part of the long form: FAULTS=full")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux signals and /proc")


@pytest.fixture
def jobs(tmp_path: Path, stem_channels: int | None) -> Iterator[Jobs]:
    """Jobs with the launcher, whose behavior these tests are about."""
    jobs = Jobs(tmp_path, fresh=FULL, launcher=True, stem_channels=stem_channels)
    yield jobs
    jobs.close()


@pytest.fixture
def command(small_arguments: list[str]) -> Callable[..., list[str]]:
    """Return the arguments of a run of three steps per epoch, 12 images each."""

    def make(world_size: int, epochs: int = 2 if FULL else 8) -> list[str]:
        changed = {
            "batch.per_device": 12 // world_size,
            "batch.global": 12,
            "schedule.epochs": epochs,
        }
        kept = [a for a in small_arguments if not any(f"={key}=" in a for key in changed)]
        changed["platform.num_devices"] = world_size
        settings = [f"--set={key}={value}" for key, value in changed.items()]
        return [*kept, *settings, "--save-every=2 steps", "--training-only"]

    return make


@pytest.mark.parametrize(
    ("world_size", "rank", "number", "workers"),
    [
        (2, 0, signal.SIGKILL, 1),
        pytest.param(2, 1, signal.SIGSTOP, 0, marks=long_form),
        pytest.param(2, 1, signal.SIGKILL, 0, marks=long_form),
        pytest.param(3, 2, signal.SIGKILL, 1, marks=long_form),
        pytest.param(3, 0, signal.SIGSTOP, 1, marks=long_form),
        pytest.param(4, 3, signal.SIGKILL, 0, marks=long_form),
    ],
)
def test_lost_rank_is_restarted(
    command, jobs, record_outcome, tmp_path, world_size, rank, number, workers
):
    """One rank of two to four is killed or stopped, with --max-restarts 1."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    jobs.run(command(world_size), whole)
    job = jobs.start(
        command(world_size),
        folder,
        "--max-restarts=1",
        "--collective-timeout-s=8",
        f"--set=data.workers={workers}",
    )
    job.wait_for_record("checkpoint", 2)
    os.kill(job.rank_pid(rank), number)
    assert job.wait(timeout_s=200) == 0, job.stderr
    assert "Traceback" not in job.stderr, job.stderr
    job.assert_no_process_left()

    warnings = [r.values["message"] for r in job.records("warning")]
    (restarted,) = [w for w in warnings if "restart 1 of at most 1" in w]
    assert f"rank {rank}" in restarted
    assert f"warning: {restarted}" in job.stderr.splitlines()

    # From the newest checkpoint, not from the beginning.
    start = job.records("start")[-1]
    assert start.values["start_step"] >= 2 and start.values["resumed_from"]
    assert read_losses(folder) == read_losses(whole)
    FinalState.read(folder).assert_equal(FinalState.read(whole))
    record_outcome("detected, restarted from the newest checkpoint, bit-equal, no process left")


def test_stopped_rank_without_restarts(command, jobs, record_outcome, tmp_path):
    """One rank of two is stopped with SIGSTOP, without restarts."""
    job = jobs.start(command(2), tmp_path / "run", "--collective-timeout-s=4")
    job.wait_for_record("step", 1)
    os.kill(job.rank_pid(1), signal.SIGSTOP)
    assert job.wait(timeout_s=60) == 1, job.stderr
    (error,) = job.error_lines()
    assert "rank 1" in error
    job.assert_no_process_left()
    record_outcome("one error line names the rank, exit 1, no process left")


def test_killed_launcher(command, jobs, record_outcome, tmp_path):
    """The launcher is killed with SIGKILL while one of its ranks is stopped."""
    job = jobs.start(command(2, epochs=50), tmp_path / "run", "--set=data.workers=1")
    job.wait_for_record("step", 1)
    # Of all signals a stopped process receives only SIGKILL.
    os.kill(job.rank_pid(1), signal.SIGSTOP)
    os.kill(job.pids[0], signal.SIGKILL)
    job.wait_after_kill()
    job.assert_no_process_left(within_s=15)
    record_outcome("no process left")


@long_form
def test_user_error_is_not_retried(command, jobs, record_outcome, tmp_path):
    """The checkpoint to resume from does not exist, with --max-restarts 3."""
    missing = tmp_path / "no-such-checkpoint"
    job = jobs.start(command(2), tmp_path / "run", "--max-restarts=3", f"--resume={missing}")
    assert job.wait() == 2, job.stderr
    lines = [line for line in job.stderr.splitlines() if line.strip()]
    assert lines == job.error_lines()
    assert str(missing) in job.stderr and "restart" not in job.stderr
    record_outcome("refused once, exit 2")


@long_form
def test_single_process_is_restarted(command, jobs, record_outcome, tmp_path):
    """The only rank is killed with SIGKILL, with --max-restarts 1.

    ``--run-epochs`` counts from the first start, not from the restart.
    """
    job = jobs.start(command(1, epochs=4), tmp_path / "run", "--max-restarts=1", "--run-epochs=2")
    job.wait_for_record("step", 4)
    os.kill(job.rank_pid(0), signal.SIGKILL)
    assert job.wait() == 0, job.stderr
    assert read_records(tmp_path / "run", "end")[-1].step == 6
    record_outcome("restarted, ended at the requested epoch")
