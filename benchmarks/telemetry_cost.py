#!/usr/bin/env python3
"""Processor time of the telemetry thread, as a share of one core.

With 1, 8 and 16 GPUs the NVML library is a fake: pynvml and this package are real, the time of
the driver itself is not included. On a CPU, /proc is that of this machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, write_record

from image_classification.telemetry.sampler import Sampler, TrainingWindows
from image_classification.telemetry.sensors import RankLocation, open_sensors, own_location
from tests.support.nvml import FakeDevice, FakeDriver, loaded

SECONDS = 15.0
STEPS = 20_000


def cost(kind: str, locations: list[RankLocation]) -> dict[str, float]:
    """Sample as in a run; return the cost."""
    work = TrainingWindows()
    sampler = Sampler(open_sensors(kind, locations), work)
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
    """Return the cost for ``count`` fake GPUs."""
    ids = [f"00000000-0000-0000-0000-{number:012}" for number in range(count)]
    devices = [FakeDevice(uuid=f"GPU-{uuid}", bus_id="") for uuid in ids]
    locations = [
        RankLocation("node", 1, (0,), "GPU", (f"MIG-{uuid}", f"GPU-{uuid}")) for uuid in ids
    ]
    with loaded(FakeDriver(*devices)):
        return cost("cuda", locations)


def with_processes(count: int) -> dict[str, float]:
    """Return the cost on a CPU for this process with ``count`` children."""
    import torch

    children = [
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        return cost("cpu", [own_location(torch.device("cpu"), "CPU")])
    finally:
        for child in children:
            child.communicate(b"\n")


def step_us() -> float:
    """Return the training loop's own cost per step, in microseconds."""
    work = TrainingWindows()
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
        print(f"{name}: {each['cpu_ms_per_sample']} ms per sample, {each['percent_of_a_core']} %")
    print(f"work log: {figures['work_log_us_per_step']} us per step")
    print(write_record("telemetry_cost", figures, ["torch", "nvidia-ml-py"], arguments.out))


if __name__ == "__main__":
    main()
