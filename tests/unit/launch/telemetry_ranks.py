"""Started once per rank by test_recorder.py: sample and report over a process group."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import CpuAccelerator
from image_classification.distributed.world import process_group
from image_classification.engine.runs import Run
from image_classification.launch.recorder import RunTelemetry
from image_classification.telemetry import sensors

rank, nodes = int(os.environ["RANK"]), int(sys.argv[1])
if nodes == 2:
    sensors._node = lambda: f"node {rank}"

world = WorldInfo(rank, rank if nodes == 1 else 0, 2, 2 // nodes, nodes)
held = bytearray(200 * 2**20)
config: Any = None
run = Run(config, world, CpuAccelerator(), torch.device("cpu"), Path())
with process_group(world, "gloo", timeout_s=60.0):
    telemetry = RunTelemetry(run)
    run.work.begin(measured=True)
    time.sleep(0.5)
    run.work.note(8)
    report = telemetry.report()
print(json.dumps({"report": report, "rank": rank, "samples": telemetry.sampler is not None}))
