"""Run ``launch.py``, or a script once per rank, and return what the processes printed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.jobs import LAUNCH, job_environ

TIMEOUT_S = 240.0


def run_launch(
    *arguments: str, script: Path = LAUNCH, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run ``SCRIPT ARGUMENTS`` to its end."""
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=job_environ(**environ),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def on_two_processes(arguments: Sequence[str]) -> list[str]:
    """Return the command line of the small configuration for two processes."""
    halved = [a.replace("batch.per_device=8", "batch.per_device=4") for a in arguments]
    return [*halved, "--set=platform.num_devices=2"]


def run_ranks(
    script: Path,
    world_size: int,
    argv: Callable[[int], Sequence[object]],
    environ: Callable[[int], dict[str, str]] = lambda rank: {},
) -> list[str]:
    """Run ``SCRIPT argv(RANK)`` once per rank; return the last line that each printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, argv(rank))],
            env=job_environ(**environ(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return [out.splitlines()[-1] for out, _ in outputs]
