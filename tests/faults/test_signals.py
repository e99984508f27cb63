"""Stop signals: SIGTERM, SIGUSR1, SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.jobs import FinalState

FULL = os.environ.get("FAULTS") == "full"
SAVING = ("--save-every=50 epochs", "--resume=auto")
STOPPED_WITHIN_S = 30.0


def stop_and_continue(jobs, expected, arguments, folder, *more, send, when, processes=1) -> None:
    """Stop a run with a signal and resume it: its final state equals the undisturbed run's."""
    job = jobs.start(arguments, folder, *SAVING, *more, processes=processes)
    when(job)
    send(job)
    sent = time.monotonic()
    assert job.wait() == 75, job.stderr
    assert time.monotonic() - sent < STOPPED_WITHIN_S
    job.assert_no_process_left()
    assert job.error_lines() == []
    assert "--resume auto" in job.stderr
    assert list((folder / "checkpoints").glob("step-*"))
    jobs.run(arguments, folder, *SAVING, *more, processes=processes)
    FinalState.read(folder).assert_equal(expected)


def signal_to(number: int, rank: int | None = None, times: int = 1, interval_s: float = 0.0):
    """Return a function that signals all processes started directly, or one rank only."""

    def send(job) -> None:
        for attempt in range(times):
            if attempt:
                time.sleep(interval_s)
            if rank is None:
                job.send_signal(number)
            else:
                os.kill(job.rank_pid(rank), number)

    return send


def after_step(step: int):
    return lambda job: job.wait_for_record("step", step)


def wait_for_evaluation(job) -> None:
    # The record of an epoch's training is written just before its validation begins.
    job.wait_for_record("epoch")


def wait_for_saving(job) -> None:
    # A checkpoint is written to a hidden folder beside the others, then renamed.
    assert job.wait_until(lambda: list((job.folder / "checkpoints").glob(".tmp-*")))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"] if FULL else ["SIGINT"])
def test_stopped_while_saving(
    jobs, long_arguments, reference_state, record_outcome, tmp_path, name
):
    """A stop signal arrives while a checkpoint is being written."""
    saving = ["--training-only", "--save-every=2 steps"]
    stop_and_continue(
        jobs,
        reference_state(long_arguments),
        long_arguments,
        tmp_path / "run",
        *saving,
        send=signal_to(getattr(signal, name)),
        when=wait_for_saving,
    )
    record_outcome("saved, exit 75 within 30 s; resumed bit-equal")


@pytest.fixture
def long_validation(arguments, tmp_path, image_folder):
    """Return the arguments with a validation set of 3,000 images."""
    folder = tmp_path / "images"
    (folder / "val").mkdir(parents=True)
    (folder / "train").symlink_to(image_folder / "train")
    for k in ("cat", "dog", "owl"):
        (folder / "val" / k).mkdir()
        for source in (image_folder / "val" / k).iterdir():
            for n in range(200):
                os.link(source, folder / "val" / k / f"{source.stem}-{n}.JPEG")
    return [str(folder) if a == str(image_folder) else a for a in arguments]


@pytest.mark.parametrize("times", [1, 2] if FULL else [2])
@pytest.mark.parametrize("processes", [1, 2] if FULL else [1])
def test_stopped_during_evaluation(
    jobs, arguments, long_validation, reference_state, record_outcome, tmp_path, times, processes
):
    """SIGTERM, once or twice, during a long validation."""
    folder = tmp_path / "run"
    job = jobs.start(long_validation, folder, *SAVING, processes=processes)
    wait_for_evaluation(job)
    sent = time.monotonic()
    signal_to(signal.SIGTERM, times=times, interval_s=0.3)(job)
    assert job.wait() == 75, job.stderr
    took_s = time.monotonic() - sent
    assert took_s < STOPPED_WITHIN_S
    # Aborted, not finished first: a whole validation can take longer than a scheduler waits.
    assert not [r for r in job.records() if r.kind == "validation"]
    job.assert_no_process_left()
    assert job.error_lines() == []
    # The aborted validation is done first when the run is resumed.
    jobs.run(arguments, folder, *SAVING, processes=processes)
    FinalState.read(folder).assert_equal(reference_state(arguments, processes))
    assert [r.epoch for r in job.records() if r.kind == "validation"] == [0, 1]
    record_outcome("validation aborted, saved, exit 75 within 30 s; validated first when resumed")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"] if FULL else ["SIGTERM"])
def test_stopped_by_one_rank(jobs, long_arguments, reference_state, record_outcome, tmp_path, name):
    """One rank of two receives a stop signal."""
    stop_and_continue(
        jobs,
        reference_state(long_arguments, 2),
        long_arguments,
        tmp_path / "run",
        "--training-only",
        send=signal_to(getattr(signal, name), rank=1),
        when=after_step(2),
        processes=2,
    )
    record_outcome(
        "all ranks stopped at the same step: saved, exit 75 within 30 s; resumed bit-equal"
    )


@pytest.mark.parametrize("processes", [1, 2] if FULL else [1])
def test_stopped_twice(jobs, long_arguments, reference_state, record_outcome, tmp_path, processes):
    """A second SIGTERM arrives while the first is being handled."""
    stop_and_continue(
        jobs,
        reference_state(long_arguments, processes),
        long_arguments,
        tmp_path / "run",
        "--training-only",
        send=signal_to(signal.SIGTERM, times=2, interval_s=0.1),
        when=after_step(2),
        processes=processes,
    )
    record_outcome("saved once, exit 75 within 30 s; resumed bit-equal")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"] if FULL else ["SIGUSR1"])
def test_stopped_with_dali(jobs, long_arguments, reference_state, record_outcome, tmp_path, name):
    """A stop signal during an epoch loaded with DALI."""
    pytest.importorskip("nvidia.dali")
    dali = [*long_arguments, "--data-backend=dali-cpu", "--set=data.workers=2"]
    stop_and_continue(
        jobs,
        reference_state(dali),
        dali,
        tmp_path / "run",
        "--training-only",
        send=signal_to(getattr(signal, name)),
        when=after_step(2),
    )
    record_outcome("saved, exit 75 within 30 s; resumed mid-epoch bit-equal")
