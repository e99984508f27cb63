#!/usr/bin/env python3
"""Training speed on this machine's CPU by how OpenMP's threads wait, alone and beside other work.

Each figure is a new ``launch.py``: ResNet-18, 32 px, batch 16, FP32, synthetic data. The other work
is one busy process a logical CPU. The policies take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from record import RESULTS, ROOT, write_record

RUN = (
    "--model resnet18 --precision FP32 --mode benchmark_training --platform CPU "
    "--data-backend synthetic --set data.image_size=32 --set batch.per_device=16 "
    "--set batch.global=16"
)
POLICIES = {"unset": {}, "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep that many processes computing."""
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def images_per_s(steps: int, policy: dict[str, str]) -> float:
    """Train ``steps`` steps in a new process; return ``results.train.images_per_s``."""
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    with tempfile.TemporaryDirectory() as folder:
        words = [*RUN.split(), "--prof", str(steps), "--workspace", folder]
        subprocess.run(
            [sys.executable, ROOT / "launch.py", *words],
            cwd=ROOT,
            env={**inherited, **policy},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
    return float(report["results"]["train"]["images_per_s"])


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="steps a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each policy")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    found = {}
    for beside in (0, len(os.sched_getaffinity(0))):
        rounds: dict[str, list[float]] = {name: [] for name in POLICIES}
        with busy(beside):
            for _ in range(arguments.rounds):
                for name, policy in POLICIES.items():
                    rounds[name].append(round(images_per_s(arguments.steps, policy), 1))
        found[f"{beside} busy processes"] = rounds
        for name, speeds in rounds.items():
            print(f"{beside} busy  {name:<8} median {statistics.median(speeds):6.1f} images/s")
    figures = {"run": RUN, "steps": arguments.steps, "images_per_s": found}
    print(write_record("openmp_wait", figures, ["torch"], arguments.out))


if __name__ == "__main__":
    main()
