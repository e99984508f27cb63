#!/usr/bin/env python3
"""How long training stands still for a checkpoint: ResNet-50 on this machine's CPU.

Runs the package's own training loop on synthetic data and reads its records. A save's stall is
what the loop waits for the checks, the copy of weights and optimizer state, and a save before it
that is still being written; it is set against the median step of the same run, so that what else
the machine does weighs on both. The last save, which a run waits for, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, write_record

from image_classification.config import resolve
from image_classification.core.types import Record, WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine.build import build_training
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train


def records_of(arguments: argparse.Namespace, folder: Path) -> list[Record]:
    """Train ``arguments.steps`` steps, saving now and then; return the run's records."""
    config = resolve(
        "resnet50",
        "FP32",
        "convergence",
        "CPU",
        data="synthetic",
        overrides={
            "model.num_classes": 1000,
            "model.memory_format": "nhwc",
            "data.image_size": arguments.image_size,
            "data.resize": arguments.image_size,
            "batch.per_device": arguments.batch,
            "batch.global": arguments.batch,
            "run.validate": False,
            "run.save_every": f"{arguments.every} steps",
            "run.max_steps": arguments.steps,
            "run.log_every_steps": 1,
        },
    )
    accelerator = get_accelerator("cpu")
    run = build_training(Run(config, WorldInfo(), accelerator, accelerator.device(0), folder))
    try:
        return list(train(run, StopRequest()))
    finally:
        run.close()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with saves; return the figures."""
    with tempfile.TemporaryDirectory(dir=arguments.workspace) as folder:
        records = records_of(arguments, Path(folder))
    saves = [r for r in records if r.kind == "checkpoint" and r.step < arguments.steps]
    saved = {r.step for r in saves}
    # The first two steps choose kernels. A write runs beside the step after its save, if not more.
    steps = [r for r in records if r.kind == "step" and r.step > 2]
    beside = [r.values["step_time_s"] for r in steps if r.step - 1 in saved]
    step_s = statistics.median(r.values["step_time_s"] for r in steps)
    stalls_s = [r.values["stall_s"] for r in saves]
    return {
        "checkpoint_bytes": saves[0].values["bytes"],
        "saves": len(saves),
        "step_time_s": round(step_s, 3),
        "step_time_s_after_a_save": round(statistics.median(beside), 3),
        "stall_s": {
            "median": round(statistics.median(stalls_s), 3),
            "max": round(max(stalls_s), 3),
        },
        "waited_s_max": round(max(r.values["waited_s"] for r in saves), 3),
        "time_s_median": round(statistics.median(r.values["time_s"] for r in saves), 3),
        "median_stall_in_steps": round(statistics.median(stalls_s) / step_s, 3),
        "max_stall_in_steps": round(max(stalls_s) / step_s, 3),
    }


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=29)
    parser.add_argument("--every", type=int, default=4, help="steps from save to save")
    parser.add_argument("--workspace", type=Path, help="where to save (default: the temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    found = measure(arguments)
    print(
        f"stall {found['stall_s']['median']} s (at most {found['stall_s']['max']} s) a save, "
        f"step {found['step_time_s']} s"
    )
    figures = {
        "model": "resnet50",
        "image_size_px": arguments.image_size,
        "batch": arguments.batch,
        "save_every_steps": arguments.every,
        "num_threads": torch.get_num_threads(),
        **found,
    }
    print(write_record("checkpoint_stall", figures, ["torch", "safetensors"], arguments.out))


if __name__ == "__main__":
    main()
