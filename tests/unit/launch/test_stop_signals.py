"""Ctrl-C sent by a terminal, and a second signal while the first is handled."""

import os
import signal
import subprocess
import sys
import time

import pytest

from image_classification.engine.checkpoints import files as checkpoint
from tests.support.jobs import LAUNCH, job_environ, read_records


def wait_for_step(process, folder, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        started = (folder / "metrics.jsonl").exists()
        if started and any(r.step >= count for r in read_records(folder, "step")):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"step {count} was never reached: {process.communicate()[1]}")


@pytest.mark.faults(
    "Ctrl-C to the terminal's process group of launcher and ranks; SIGTERM twice",
    "saved once, exit 75, no process left",
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "numbers", "to_group"),
    [
        (1, [signal.SIGTERM, signal.SIGTERM], False),
        # A terminal's Ctrl-C goes to the launcher and to every rank.
        (2, [signal.SIGINT], True),
        (2, [signal.SIGTERM, signal.SIGTERM], False),
    ],
)
def test_signal_saves_and_exits_75(small_arguments, tmp_path, processes, numbers, to_group):
    folder = tmp_path / "run"
    arguments = [a for a in small_arguments if "per_device" not in a and "epochs" not in a]
    arguments += ["--set=batch.per_device=4", "--epochs=900", "--training-only"]
    arguments += ["--save-every=900 epochs", f"--set=platform.num_devices={processes}"]
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH), *arguments, f"--workspace={folder}"],
        env=job_environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_step(process, folder, 2)
    for number in numbers:
        if to_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        time.sleep(0.2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.startswith(f"stopped: {numbers[0].name} came; ")
    assert "Traceback" not in err
    saved = checkpoint.listed(folder / "checkpoints")
    assert len(saved) == 1
    checkpoint.verify(saved[0].path)
    assert f"step {saved[0].step} is saved" in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
