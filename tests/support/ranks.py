"""Run a script once per rank, each a fork of a process with its imports done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.jobs import Jobs


def run_ranks(
    jobs: Jobs,
    script: Path,
    world_size: int,
    *argv: object,
    environs: Sequence[Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Run ``SCRIPT ARGV`` once per rank; return the JSON that each printed as its last line.

    environs: each rank's variables; by default those of torchrun.
    """
    job = jobs.start_ranks(script, [*map(str, argv)], world_size, environs)
    assert job.wait() == 0, job.stderr
    lines = job.out.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
