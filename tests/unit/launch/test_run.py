"""Ctrl-C sent by a terminal, and a second signal while the first is handled."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from image_classification.engine.checkpoints import files as checkpoint
from tests.support.jobs import Jobs


@pytest.mark.faults(
    "Ctrl-C to the terminal's process group of launcher and ranks; SIGTERM twice",
    "saved once, exit 75, no process left",
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "to_group"),
    [
        # A terminal's Ctrl-C goes to the launcher's whole process group.
        ([signal.SIGINT], True),
        ([signal.SIGTERM, signal.SIGTERM], False),
    ],
)
def test_signal_saves_and_exits_75(
    small_arguments: list[str],
    tmp_path: Path,
    jobs: Jobs,
    numbers: list[signal.Signals],
    to_group: bool,
) -> None:
    folder = tmp_path / "run"
    arguments = [a for a in small_arguments if "per_device" not in a and "epochs" not in a]
    endless = ["--epochs=900", "--training-only", "--save-every=900 epochs"]
    job = jobs.start([*arguments, *endless], folder, processes=2)
    job.wait_for_record("step", 2)
    for number in numbers:
        if to_group:
            os.killpg(job.pids[0], number)
        else:
            job.send_signal(number)
        time.sleep(0.2)
    assert job.wait() == 75, job.stderr
    assert job.stderr.startswith(f"stopped: {numbers[0].name} received; ")
    assert job.error_lines() == []
    assert "Traceback" not in job.stderr
    (saved,) = checkpoint.listed(folder / "checkpoints")
    checkpoint.verify(saved.path)
    assert f"step {saved.step} is saved" in job.stderr
    job.assert_no_process_left()
