"""Checkpoints that rank 0 of two cannot write: every rank ends with the error."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.engine.checkpoints import files as checkpoint
from image_classification.reporting.sinks import read_metrics

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 128 MiB: room for one checkpoint of 90 MB, not for two."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def two_processes(small_arguments):
    arguments = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    settings = ["platform.num_devices=2", "run.save_every=1 steps", "run.validate=false"]
    return [*arguments, *(f"--set={s}" for s in settings)]


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.faults(
    "The disk is full at a save with two ranks",
    "refused: all ranks end, one error line, earlier checkpoint intact",
)
def test_full_disk_ends_every_rank_with_one_error(two_processes, small_disk):
    found = run(*two_processes, f"--workspace={small_disk}")
    assert found.returncode == 2, found.stderr
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no space left" in errors[0]
    assert "Traceback" not in found.stderr
    (left,) = checkpoint.listed(small_disk / "checkpoints")
    checkpoint.verify(left.path)
    assert str(left.path) in errors[0]


@pytest.mark.faults(
    "The disk is full at saves with two ranks, with run.on_save_error=warn",
    "trained to the end with a warning at each save, then an error",
)
def test_full_disk_with_warn_ends_every_rank_at_the_end(two_processes, small_disk):
    found = run(*two_processes, f"--workspace={small_disk}", "--set=run.on_save_error=warn")
    assert found.returncode == 2, found.stderr
    records = read_metrics(small_disk / "metrics.jsonl")
    assert max(r.step for r in records if r.kind == "step") == 12
    warned = [r.values["message"] for r in records if r.kind == "warning"]
    assert sum("is not saved" in message for message in warned) >= 3


def test_every_save_of_two_ranks_is_recorded_once_and_complete(two_processes, tmp_path):
    folder = tmp_path / "run"
    found = run(*two_processes, f"--workspace={folder}", "--set=run.keep_checkpoints=-1")
    assert found.returncode == 0, found.stderr
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r.kind == "checkpoint"]
    assert [r.step for r in records] == list(range(1, 13))
    for record in records:
        checkpoint.verify(Path(record.values["path"]))
        assert 0 <= record.values["waited_s"] <= record.values["stall_s"]
        assert record.values["stall_s"] <= record.values["time_s"] + 1
