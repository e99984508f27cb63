"""Killed without warning (SIGKILL)."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from image_classification.engine.checkpoints import files as checkpoint

KILLS = {1: (2, 80), 2: (1, 20)}
"""Short and full, by the number of ranks."""

SAVING = ("--training-only", "--save-every=1 steps", "--resume=auto", "--collective-timeout-s=20")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(
    jobs, arguments, undisturbed, learnt, full, seen, tmp_path, processes
):
    """A rank is killed with SIGKILL at a random moment of training or saving."""
    expected = undisturbed(arguments, processes)
    draw = random.Random(processes)
    wanted = KILLS[processes][full]
    kills, runs, newest = 0, 0, 0
    folder = tmp_path / "run-0"
    while kills < wanted:
        # Imports take longer than the training: in full, a tenth of the kills has them as well.
        real = full and kills % 10 == 0
        job = jobs.start(arguments, folder, *SAVING, processes=processes, real=real)
        # A resumed run appends to its records: what it says first marks the end of starting up.
        before = len(job.records())
        started = job.until(lambda j=job, n=before: len(j.records()) > n)
        if started and draw.random() < 0.9:
            time.sleep(draw.uniform(0.0, 1.2))
        if not job.has_ended:
            os.kill(job.rank_pid(draw.randrange(processes)), signal.SIGKILL)
            job.finish_after_a_kill()
            kills += 1
        else:
            assert job.finish() == 0, job.stderr
        job.assert_nothing_left()
        good, complaints = checkpoint.newest_good(folder / "checkpoints")
        assert complaints == []
        step = good.step if good is not None else 0
        assert step >= newest, "a finished checkpoint was lost"
        newest = step
        if good is not None:
            checkpoint.load(good.path)
        if newest == expected.step:
            learnt.of(folder).assert_equal(expected)
            runs, newest = runs + 1, 0
            folder = tmp_path / f"run-{runs}"
    if newest:
        jobs.run(arguments, folder, *SAVING, processes=processes)
        learnt.of(folder).assert_equal(expected)
    seen(
        f"survived on {processes} rank(s): a valid checkpoint each time, no process left, "
        "final weights bit for bit those of the undisturbed run",
        kills,
    )
