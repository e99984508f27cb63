#!/usr/bin/env python3
"""How long ``launch.py`` takes to answer without running anything.

Each answer is a new process; files are in the system's cache after the first, which is left out
and recorded apart. Wall time from starting the process to its end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import RESULTS, ROOT, write_record

NAMES = "--model resnet50 --precision AMP --mode convergence --platform DGX1V"
COMMANDS = {
    "--list": "--list",
    "--list --json": "--list --json",
    "--explain": f"{NAMES} --explain",
    "--explain --json": f"{NAMES} --explain --json",
}


def time_s(arguments: str) -> float:
    """Run ``launch.py`` once and return its wall time; a failing command ends the benchmark."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, ROOT / "launch.py", *arguments.split()],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


def measure(arguments: str, runs: int) -> dict[str, float | int]:
    """Return median, least and most seconds of ``runs`` runs after a first one."""
    first_s = time_s(arguments)
    times_s = [time_s(arguments) for _ in range(runs)]
    return {
        "median_s": round(statistics.median(times_s), 4),
        "min_s": round(min(times_s), 4),
        "max_s": round(max(times_s), 4),
        "first_s": round(first_s, 4),
        "runs": runs,
    }


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11, help="timed runs a command")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    commands = {}
    for name, command in COMMANDS.items():
        commands[name] = measure(command, arguments.runs)
        print(f"{name:<18} median {commands[name]['median_s']:.3f} s of {arguments.runs} runs")
    print(write_record("cold_start", {"commands": commands}, ["pyyaml"], arguments.out))


if __name__ == "__main__":
    main()
