"""Worlds of real processes for tests that kill, stop and restart them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from image_classification.core.types import Record
from image_classification.reporting.sinks import read_metrics

ROOT = Path(__file__).parents[2]
TOKEN = "FAULT_TEST_TOKEN"
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "MPI_", "MASTER_", "TORCHELASTIC_", "IMAGE_CLASSIFICATION_")


def environment(**variables: str) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    return {**keep, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}


@dataclass
class Job:
    """One launch: its processes are known by a token in their environment."""

    process: subprocess.Popen[str]
    folder: Path
    token: str
    killed: set[int] = field(default_factory=set)

    def alive(self) -> dict[int, dict[str, str]]:
        """Every process of the job but zombies, with its environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                variables = dict(
                    v.split("=", 1) for v in (entry / "environ").read_text().split("\0") if "=" in v
                )
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, UnicodeDecodeError):
                continue
            if variables.get(TOKEN) == self.token and state != "Z":
                found[int(entry.name)] = variables
        return found

    def rank_pid(self, rank: int) -> int:
        """The process of ``rank``: the launcher's own child, not a loader worker."""
        for pid, variables in self.alive().items():
            parent = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == self.process.pid and variables.get("RANK") == str(rank):
                return pid
        raise AssertionError(f"no process of rank {rank}")

    def wait_for(self, kind: str, step: int) -> None:
        """Return when rank 0 has recorded ``kind`` at ``step`` or later."""
        metrics = self.folder / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if metrics.exists() and any(
                r.kind == kind and r.step >= step for r in read_metrics(metrics)
            ):
                return
            time.sleep(0.02)
        raise AssertionError(f"no {kind} of step {step}: {self.process.communicate()}")

    def finish(self, timeout_s: float = 200) -> tuple[int, str]:
        """Wait for the launcher; return its exit code and what it said on stderr."""
        _, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, err

    def assert_nobody_left(self, within_s: float = 10) -> None:
        deadline = time.monotonic() + within_s
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not self.alive()

    def end(self) -> None:
        """Kill what is left of the job."""
        for pid in self.alive():
            os.kill(pid, 9)
        self.process.communicate()


def start(arguments: list[str], folder: Path, *more: str, **variables: str) -> Job:
    token = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments, f"--workspace={folder}", *more],
        env=environment(**variables, **{TOKEN: token}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Job(process, folder, token)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


def records(folder: Path, kind: str) -> list[Record]:
    return [r for r in read_metrics(folder / "metrics.jsonl") if r.kind == kind]


def losses(folder: Path) -> list[float]:
    return [r.values["loss"] for r in records(folder, "step")]
