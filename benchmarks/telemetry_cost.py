#!/usr/bin/env python3
"""Processor time that sampling takes from a run, as a share of one core.

With 1, 8 and 16 GPUs the driver is made up: pynvml and all of this package's work are real, the
driver's own time is not in it. On a CPU, /proc is this machine's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, ROOT, write_record

sys.path.insert(0, str(ROOT / "tests" / "unit" / "hardware"))

from fake_driver import FakeDevice, FakeDriver, loaded

from image_classification.telemetry.rank_location import Place, own_place
from image_classification.telemetry.sampler import Sampler, open_sensors
from image_classification.telemetry.windows import WorkLog

SECONDS = 15.0
STEPS = 20_000


def cost(kind: str, places: list[Place]) -> dict[str, float]:
    """Let the thread sample as it does in a run; return what it took."""
    work = WorkLog()
    sampler = Sampler(open_sensors(kind, places), work)
    begun_s = time.perf_counter()
    sampler.start()
    work.begin(measured=True)
    time.sleep(SECONDS)
    sampler.stop()
    time_s = time.perf_counter() - begun_s
    trouble = sampler.trouble()
    assert trouble is None, trouble
    return {
        "samples": sampler.samples,
        "cpu_ms_per_sample": round(1000 * sampler.cost_s / sampler.samples, 3),
        "percent_of_a_core": round(100 * sampler.cost_s / time_s, 3),
    }


def with_gpus(count: int) -> dict[str, float]:
    """Return the cost for ``count`` GPUs that are made up."""
    ids = [f"00000000-0000-0000-0000-{number:012}" for number in range(count)]
    devices = [FakeDevice(uuid=f"GPU-{uuid}", bus_id="") for uuid in ids]
    places = [Place("node", 1, (0,), "GPU", (f"MIG-{uuid}", f"GPU-{uuid}")) for uuid in ids]
    with loaded(FakeDriver(*devices)):
        return cost("cuda", places)


def with_processes(count: int) -> dict[str, float]:
    """Return the cost on a CPU for this process with ``count`` children."""
    import torch

    children = [
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        return cost("cpu", [own_place(torch.device("cpu"), "CPU")])
    finally:
        for child in children:
            child.communicate(b"\n")


def step_us() -> float:
    """Return microseconds of the training loop's own part of it, a step."""
    work = WorkLog()
    work.begin(measured=True)
    begun_s = time.perf_counter()
    for _ in range(STEPS):
        work.note(256)
    return 1e6 * (time.perf_counter() - begun_s) / STEPS


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    found = {f"{n} x GPU": with_gpus(n) for n in (1, 8, 16)}
    found |= {f"CPU, {n} children": with_processes(n) for n in (0, 16)}
    figures: dict[str, Any] = {
        "seconds_each": SECONDS,
        "processes_on_this_machine": sum(p.name.isdecimal() for p in Path("/proc").iterdir()),
        "work_log_us_per_step": round(step_us(), 2),
        "sampling": found,
    }
    for name, each in found.items():
        print(f"{name}: {each['cpu_ms_per_sample']} ms a sample, {each['percent_of_a_core']} %")
    print(f"work log: {figures['work_log_us_per_step']} us a step")
    print(write_record("telemetry_cost", figures, ["torch", "nvidia-ml-py"], arguments.out))


if __name__ == "__main__":
    main()
