"""Asked to stop (SIGTERM, SIGUSR1, Ctrl-C)."""

from __future__ import annotations

import os
import signal
import time

import pytest

FULL = os.environ.get("FAULTS") == "full"
SAVING = ("--save-every=50 epochs", "--resume=auto")
STOPPED_WITHIN_S = 30.0


def stop_and_continue(
    jobs, learnt, expected, arguments, folder, *more, send, when, processes=1
) -> None:
    """Disturb a run and continue it: what it learns is what it had learnt undisturbed."""
    job = jobs.start(arguments, folder, *SAVING, *more, processes=processes)
    when(job)
    send(job)
    sent = time.monotonic()
    assert job.finish() == 75, job.stderr
    assert time.monotonic() - sent < STOPPED_WITHIN_S
    job.assert_nothing_left()
    assert job.error_lines() == []
    assert "--resume auto" in job.stderr
    assert list((folder / "checkpoints").glob("step-*"))
    jobs.run(arguments, folder, *SAVING, *more, processes=processes)
    learnt.of(folder).assert_equal(expected)


def signal_to(number: int, rank: int | None = None, times: int = 1, apart_s: float = 0.0):
    """Send a signal to all processes started (launcher or ranks), or to one rank alone."""

    def send(job) -> None:
        for attempt in range(times):
            if attempt:
                time.sleep(apart_s)
            for pid in job.pids if rank is None else [job.rank_pid(rank)]:
                if pid not in job.codes:
                    os.kill(pid, number)

    return send


def after_step(step: int):
    return lambda job: job.until_recorded("step", step)


def in_evaluation(job) -> None:
    # The record of an epoch's training is written right before its validation begins.
    job.until_recorded("epoch")


def in_saving(job) -> None:
    # What is half written lies beside the checkpoints under a name with a dot.
    assert job.until(lambda: list((job.folder / "checkpoints").glob(".tmp-*")))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"] if FULL else ["SIGINT"])
def test_stopped_while_saving(jobs, arguments, undisturbed, learnt, seen, tmp_path, name):
    """A stop signal that comes while a checkpoint is being written."""
    saving = ["--training-only", "--save-every=2 steps"]
    stop_and_continue(
        jobs,
        learnt,
        undisturbed(arguments),
        arguments,
        tmp_path / "run",
        *saving,
        send=signal_to(getattr(signal, name)),
        when=in_saving,
    )
    seen("saved, exit 75 within 30 s, continued bit for bit")


@pytest.fixture
def much_to_validate(arguments, tmp_path, image_folder):
    """The same training with a validation set of 3,000 images."""
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
    jobs, arguments, much_to_validate, undisturbed, learnt, seen, tmp_path, times, processes
):
    """SIGTERM, once or twice, in the midst of a validation that takes long."""
    folder = tmp_path / "run"
    job = jobs.start(much_to_validate, folder, *SAVING, processes=processes)
    in_evaluation(job)
    sent = time.monotonic()
    signal_to(signal.SIGTERM, times=times, apart_s=0.3)(job)
    assert job.finish() == 75, job.stderr
    took_s = time.monotonic() - sent
    assert took_s < STOPPED_WITHIN_S
    # Broken off, not finished first: a whole validation can take longer than a scheduler waits.
    assert not [r for r in job.records() if r.kind == "validation"]
    job.assert_nothing_left()
    assert job.error_lines() == []
    # The validation that was broken off is made up for, on what was saved.
    jobs.run(arguments, folder, *SAVING, processes=processes)
    learnt.of(folder).assert_equal(undisturbed(arguments, processes))
    assert [r.epoch for r in job.records() if r.kind == "validation"] == [0, 1]
    seen("validation broken off, saved, exit 75 within 30 s, validated first when continued")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"] if FULL else ["SIGTERM"])
def test_stopped_by_one_rank(jobs, arguments, undisturbed, learnt, seen, tmp_path, name):
    """A stop signal to one rank of two."""
    stop_and_continue(
        jobs,
        learnt,
        undisturbed(arguments, 2),
        arguments,
        tmp_path / "run",
        "--training-only",
        send=signal_to(getattr(signal, name), rank=1),
        when=after_step(2),
        processes=2,
    )
    seen("all ranks stopped at one step: saved, exit 75 within 30 s, continued bit for bit")


@pytest.mark.parametrize("processes", [1, 2] if FULL else [1])
def test_stopped_twice(jobs, arguments, undisturbed, learnt, seen, tmp_path, processes):
    """SIGTERM again while the first one is being answered."""
    stop_and_continue(
        jobs,
        learnt,
        undisturbed(arguments, processes),
        arguments,
        tmp_path / "run",
        "--training-only",
        send=signal_to(signal.SIGTERM, times=2, apart_s=0.1),
        when=after_step(2),
        processes=processes,
    )
    seen("saved once and whole, exit 75 within 30 s, continued bit for bit")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"] if FULL else ["SIGUSR1"])
def test_stopped_with_dali(jobs, arguments, undisturbed, learnt, seen, tmp_path, name):
    """A stop signal in the midst of an epoch that DALI feeds."""
    pytest.importorskip("nvidia.dali")
    dali = [*arguments, "--data-backend=dali-cpu", "--set=data.workers=2"]
    stop_and_continue(
        jobs,
        learnt,
        undisturbed(dali),
        dali,
        tmp_path / "run",
        "--training-only",
        send=signal_to(getattr(signal, name)),
        when=after_step(2),
    )
    seen("saved, exit 75 within 30 s, continued in mid-epoch bit for bit")
