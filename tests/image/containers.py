"""Run unprivileged, read-only containers of the image, as docs/container.md recommends."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image_classification.reporting.sinks import read_metrics

ROOT = Path(__file__).parents[2]
LOCKED_DOWN = shlex.split(
    "--ipc=host --read-only --tmpfs /tmp:exec,mode=1777 --cap-drop ALL "
    "--security-opt no-new-privileges "
    # GNU OpenMP's spinning more than halves the speed on a machine with other work.
    "--env OMP_WAIT_POLICY=PASSIVE"
)
# With the data set mounted on /imagenet.
SMALL_RUN = shlex.split(
    "launch.py --model resnet18 --precision FP32 --mode convergence --platform CPU /imagenet "
    "--num_classes 10 --set data.image_size=32 --set data.resize=36 --set batch.per_device=16 "
    "--set batch.global=32 --set optim.lr=0.05"
)


@dataclass
class Engine:
    """A Docker client and the image. started: names of containers to remove at the end."""

    image: str
    client: str
    started: list[str] = field(default_factory=list)

    def call(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.client, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **variables},
        )

    def checked(self, *words: str, **variables: str) -> str:
        done = self.call(*words, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(
        self,
        *command: str,
        options: Sequence[str] = (),
        flags: Sequence[str] = LOCKED_DOWN,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a container that is always removed, also on a timeout."""
        name = f"ic-test-{uuid.uuid4().hex[:12]}"
        words = ["run", "--rm", "--name", name, *flags, *options, self.image, *command]
        try:
            return self.call(*words)
        except BaseException:
            # Killing the client would leave the container running.
            self.call("rm", "--force", "--volumes", name)
            raise

    def start(self, *command: str, options: Sequence[str] = ()) -> str:
        """Start a container and return its name."""
        name = f"ic-test-{uuid.uuid4().hex[:12]}"
        self.started.append(name)
        self.checked(
            "run", "--detach", "--name", name, *LOCKED_DOWN, *options, self.image, *command
        )
        return name

    def wait(self, name: str) -> int:
        """Wait for a container; return its exit code."""
        return int(self.call("wait", name).stdout)

    def logs(self, name: str) -> str:
        done = self.call("logs", name)
        return done.stdout + done.stderr

    def inspect(self) -> dict[str, Any]:
        """Return the output of ``docker image inspect``."""
        (content,) = json.loads(self.checked("image", "inspect", self.image))
        assert isinstance(content, dict)
        return content

    def remove_all(self) -> None:
        if self.started:
            self.call("rm", "--force", "--volumes", *self.started)


def mounts(runs: Path, data: Path | None = None) -> list[str]:
    """Return the options that mount the folder for runs, and the data read-only."""
    options = ["--volume", f"{runs}:/workspace/runs"]
    return options if data is None else [*options, "--volume", f"{data}:/imagenet:ro"]


def wait_for_step(metrics: Path, step: int, timeout_s: float = 600) -> None:
    """Return when a run has recorded training step ``step``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if metrics.exists() and any(
            r.kind == "step" and r.step >= step for r in read_metrics(metrics)
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"{metrics} has no step {step} after {timeout_s:.0f} s")


def losses(run: Path) -> list[float]:
    """Return the training loss of each recorded step."""
    return [r.values["loss"] for r in read_metrics(run / "metrics.jsonl") if r.kind == "step"]


def report(run: Path) -> dict[str, Any]:
    """Return a run's report.json."""
    content = json.loads((run / "report.json").read_text())
    assert isinstance(content, dict)
    return content
