"""Several processes over gloo: the same run as one process, stopped and failing as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from image_classification.reporting.sinks import read_metrics

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

MIXED = ["--mixup=0.2", "--label-smoothing=0.1", "--use-ema=0.9", "--no-checkpoints"]


def command(arguments: list[str], *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), *arguments, *more]


def environment() -> dict[str, str]:
    # One thread a process: the same arithmetic in either world, and two processes fit two cores.
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments, *more),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def losses(folder: Path) -> list[float]:
    records = read_metrics(folder / "metrics.jsonl")
    return [r.values["loss"] for r in records if r.kind == "step"]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


@pytest.fixture
def half_batches(small_arguments):
    """Four images a device against a global batch of eight."""
    return [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]


def test_two_processes_learn_what_one_learns(half_batches, tmp_path):
    """One process accumulates two micro-batches, or two processes take one each.

    The micro-batches are the same images with the same augmentation and mixing, and batch
    statistics are those of a micro-batch in both worlds, so the training loss must agree. What may
    differ are BN's running statistics (rank 0 sees half the micro-batches), and so validation.
    """
    one, two, joined = tmp_path / "one", tmp_path / "two", tmp_path / "joined"
    found = run(half_batches, *MIXED, f"--workspace={one}")
    assert found.returncode == 0, found.stderr
    found = run(half_batches, *MIXED, f"--workspace={two}", "--set=platform.num_devices=2")
    assert found.returncode == 0, found.stderr
    assert losses(one) == pytest.approx(losses(two), abs=1e-4)
    assert len(losses(two)) == 12

    # A world that torchrun started is joined, not started again.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += ["--master_addr=127.0.0.1", "--master_port=29611"]
    launch = command(half_batches, *MIXED, f"--workspace={joined}")[1:]
    found = subprocess.run(
        [*torchrun, *launch],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert losses(joined) == losses(two)

    # Fifteen images on two ranks in batches of four: each counted once.
    for folder in (one, two, joined):
        validations = [
            r.values for r in read_metrics(folder / "metrics.jsonl") if "validation" in r.kind
        ]
        assert {v["images"] for v in validations} == {15}
        assert all(
            v["top1"] * 15 / 100 == pytest.approx(round(v["top1"] * 15 / 100)) for v in validations
        )


def start(arguments: list[str], *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(arguments, *more),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and any(
            r.kind == "step" and r.step >= step for r in read_metrics(metrics)
        ):
            return
        time.sleep(0.02)
    out, err = process.communicate(timeout=60)
    raise AssertionError(f"step {step} was never reached:\n{out}\n{err}")


def test_signals_save_exit_75_and_the_next_start_continues(half_batches, tmp_path):
    """Two processes; one alone is stopped in tests/faults/test_signals.py."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    long = [a.replace("schedule.epochs=3", "schedule.epochs=5") for a in half_batches]
    # Loader workers must neither die of the signal nor outlive the run.
    long = [a.replace("data.workers=0", "data.workers=1") for a in long]
    long += ["--set=platform.num_devices=2", "--training-only"]
    long += ["--set=run.save_every=50 epochs"]
    found = run(long, f"--workspace={whole}")
    assert found.returncode == 0, found.stderr

    for number, step in ((signal.SIGTERM, 3), (signal.SIGUSR1, 9)):
        process = start(long, f"--workspace={broken}", "--resume=auto")
        wait_for_step(process, broken, step)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert "--resume auto" in err
        assert "Traceback" not in err

    found = run(long, f"--workspace={broken}", "--resume=auto")
    assert found.returncode == 0, found.stderr
    expected, resumed = final_weights(whole), final_weights(broken)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_one_ranks_mistake_is_one_line_for_all(half_batches, own_image_folder, tmp_path):
    arguments = [*half_batches[:4], str(own_image_folder), *half_batches[5:]]
    broken = own_image_folder / "train" / "cat" / "003.JPEG"
    broken.write_bytes(b"not an image")
    found = run(arguments, "--set=platform.num_devices=2", f"--workspace={tmp_path / 'run'}")
    assert found.returncode == 2, found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert str(broken) in lines[0]
    assert "Traceback" not in found.stderr
