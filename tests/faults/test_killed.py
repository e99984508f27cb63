"""Ranks killed by SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from image_classification.engine.checkpoints import files as checkpoint
from tests.support.jobs import FinalState

KILLS = {1: (2, 80), 2: (1, 20)}
"""Number of kills in the short and in the long form, by number of ranks."""

SAVING = ("--training-only", "--save-every=1 steps", "--resume=auto", "--collective-timeout-s=20")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(
    jobs, arguments, reference_state, full, record_outcome, tmp_path, processes
):
    """A rank is killed with SIGKILL at a random moment of training or saving."""
    if not full:
        arguments = [*arguments, "--set=schedule.epochs=5"]
    expected = reference_state(arguments, processes)
    draw = random.Random(processes)
    num_kills = KILLS[processes][full]
    kills, runs, newest = 0, 0, 0
    folder = tmp_path / "run-0"
    while kills < num_kills:
        # Imports take longer than the training: one kill in ten of the long form includes them.
        fresh = full and kills % 10 == 0
        job = jobs.start(arguments, folder, *SAVING, processes=processes, fresh=fresh)
        # A resumed run appends to its records: the first new record marks the end of start-up.
        before = len(job.records())
        started = job.wait_until(lambda j=job, n=before: len(j.records()) > n)
        if started and draw.random() < 0.9:
            time.sleep(draw.uniform(0.0, 1.2 if full else 0.6))
        if not job.has_ended:
            os.kill(job.rank_pid(draw.randrange(processes)), signal.SIGKILL)
            job.wait_after_kill()
            kills += 1
        else:
            assert job.wait() == 0, job.stderr
        job.assert_no_process_left()
        good, complaints = checkpoint.newest_good(folder / "checkpoints")
        assert complaints == []
        step = good.step if good is not None else 0
        assert step >= newest, "a finished checkpoint was lost"
        newest = step
        if good is not None:
            checkpoint.load(good.path)
        if newest == expected.step:
            FinalState.read(folder).assert_equal(expected)
            runs, newest = runs + 1, 0
            folder = tmp_path / f"run-{runs}"
    if newest:
        jobs.run(arguments, folder, *SAVING, processes=processes)
        FinalState.read(folder).assert_equal(expected)
    record_outcome(
        f"survived on {processes} rank(s): a valid checkpoint each time, no process left, "
        "final weights bit-equal to an undisturbed run's",
        kills,
    )
