"""Several processes over gloo train like one process, and stop and fail together.

The short form forks the launcher and its ranks, with narrow networks. FAULTS=full (`make
test-long`) starts each as a new process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classification.cli.emit import render_emission
from image_classification.cli.launch import parse
from tests.conftest import STEM_CHANNELS
from tests.support.jobs import (
    FORK_SERVER,
    LAUNCH,
    FinalState,
    Jobs,
    job_environ,
    read_losses,
    read_records,
)

pytestmark = pytest.mark.slow
FULL = os.environ.get("FAULTS") == "full"
EPOCHS = 3 if FULL else 10

MIXED = ["--mixup=0.2", "--label-smoothing=0.1", "--use-ema=0.9", "--save-every=50 epochs"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    stem_channels = None if FULL else STEM_CHANNELS
    folder = tmp_path_factory.mktemp("jobs")
    jobs = Jobs(folder, fresh=FULL, launcher=True, stem_channels=stem_channels)
    yield jobs
    jobs.close()


@pytest.fixture
def half_batches(small_arguments: list[str]) -> list[str]:
    """Four images per device and micro-batch, for a global batch of eight."""
    half = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    return [a.replace("schedule.epochs=3", f"schedule.epochs={EPOCHS}") for a in half]


@pytest.fixture(scope="module")
def two_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes") / "two"


@pytest.fixture
def two(jobs: Jobs, half_batches: list[str], two_folder: Path) -> Path:
    """Return the folder of a run on two processes, of four steps per epoch; run once."""
    if not two_folder.exists():
        jobs.run(half_batches, two_folder, *MIXED, processes=2)
    return two_folder


def assert_each_image_was_validated_once(folder: Path) -> None:
    # Fifteen images: neither the ranks nor the batches of four divide them.
    validations = [r.values for r in read_records(folder) if "validation" in r.kind]
    assert {v["images"] for v in validations} == {15}
    for correct in (v["top1"] * 15 / 100 for v in validations):
        assert correct == pytest.approx(round(correct))


def test_two_processes_train_like_one(jobs, half_batches, two, tmp_path):
    """One process accumulates two micro-batches, or two processes take one each.

    The micro-batches hold the same images with the same augmentation and mixing, and batch
    statistics are those of a micro-batch in both cases, so the training losses must agree. BN's
    running statistics may differ (rank 0 sees half the micro-batches), and so may validation.
    """
    one = tmp_path / "one"
    jobs.run(half_batches, one, *MIXED)
    assert read_losses(one) == pytest.approx(read_losses(two), abs=1e-4)
    assert len(read_losses(two)) == 4 * EPOCHS
    for folder in (one, two):
        assert_each_image_was_validated_once(folder)


def test_the_emitted_torchrun_command_trains_like_the_launcher(half_batches, two, tmp_path):
    """``launch.py`` joins the world of torchrun instead of starting processes."""
    folder = tmp_path / "a run"
    argv = [*half_batches, *MIXED, "--set=platform.num_devices=2", "--set=run.stop_epoch=1"]
    argv.append(f"--workspace={folder}")
    program = [str(LAUNCH)] if FULL else [str(FORK_SERVER), str(LAUNCH)]
    variables = {} if FULL else {"STEM_CHANNELS": str(STEM_CHANNELS)}
    config = parse(["--emit=torchrun", *argv]).read().on()
    command = render_emission("torchrun", config, ["--emit=torchrun", *argv], program)
    python = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", command],
        env=job_environ(PATH=f"{python}{os.pathsep}{os.environ['PATH']}", **variables),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_losses(folder) == read_losses(two)[:4]
    assert_each_image_was_validated_once(folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["exit"]["code"] == 0
    assert report["config"]["platform"]["num_devices"] == 2


def test_stopped_by_signals_and_resumed(jobs, half_batches, two, tmp_path):
    """Two processes with loader workers; one process is tests/faults/test_signals.py's."""
    stopped = tmp_path / "stopped"
    # Loader workers must neither die of the signal nor outlive the run.
    arguments = [a.replace("data.workers=0", "data.workers=1") for a in half_batches]
    arguments += [*MIXED, "--resume=auto"]
    for number, step in ((signal.SIGTERM, 2), (signal.SIGUSR1, 2 * EPOCHS)):
        job = jobs.start(arguments, stopped, processes=2)
        job.wait_for_record("step", step)
        job.send_signal(number)
        assert job.wait() == 75, job.stderr
        job.assert_no_process_left()
        assert "--resume auto" in job.stderr
        assert job.error_lines() == []
    jobs.run(arguments, stopped, processes=2)
    FinalState.read(stopped).assert_equal(FinalState.read(two))
    assert read_losses(stopped) == read_losses(two)


def test_error_of_one_rank_is_one_line(jobs, half_batches, own_image_folder, tmp_path):
    arguments = [*half_batches[:4], str(own_image_folder), *half_batches[5:]]
    broken = own_image_folder / "train" / "cat" / "003.JPEG"
    broken.write_bytes(b"not an image")
    job = jobs.start(arguments, tmp_path / "run", processes=2)
    assert job.wait() == 2, job.stderr
    (error,) = job.error_lines()
    assert str(broken) in error
