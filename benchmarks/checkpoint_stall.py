#!/usr/bin/env python3
"""How long training stands still for a checkpoint: ResNet-50 on this machine's CPU.

Runs the package's own training loop on synthetic data and reads its records. A save's stall is
what the loop waits for the checks, the copy of weights and optimizer state, and a save before it
that is still being written; it is set against the median step between saves. The last save, which
a run waits for, is not counted.
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
from image_classification.engine.build import build_run
from image_classification.engine.stopping import StopRequest
from image_classification.engine.train import train
from image_classification.hardware.accelerator import get_accelerator


def records_of(arguments: argparse.Namespace, save: bool, folder: Path) -> list[Record]:
    """Train ``arguments.steps`` steps, saving or not; return the run's records."""
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
            "run.save_checkpoints": save,
            "run.save_every": f"{arguments.every} steps",
            "run.max_steps": arguments.steps,
            "run.log_every_steps": 1,
        },
    )
    accelerator = get_accelerator("cpu")
    run = build_run(config, WorldInfo(), accelerator, accelerator.device(0), folder)
    try:
        return list(train(run, StopRequest()))
    finally:
        run.close()


def step_times_s(records: list[Record]) -> list[float]:
    """Times of the steps but for the first two, which choose kernels."""
    return [r.values["step_time_s"] for r in records if r.kind == "step" and r.step > 2]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train without and with saves; return the figures."""
    with tempfile.TemporaryDirectory(dir=arguments.workspace) as folder:
        plain = step_times_s(records_of(arguments, False, Path(folder) / "plain"))
        records = records_of(arguments, True, Path(folder) / "saving")
    saves = [r.values for r in records if r.kind == "checkpoint" and r.step < arguments.steps]
    step_s = statistics.median(plain)
    stalls_s = [s["stall_s"] for s in saves]
    return {
        "checkpoint_bytes": saves[0]["bytes"],
        "saves": len(saves),
        "step_time_s": round(step_s, 3),
        "step_time_s_beside_saves": round(statistics.median(step_times_s(records)), 3),
        "stall_s": {
            "median": round(statistics.median(stalls_s), 3),
            "max": round(max(stalls_s), 3),
        },
        "waited_s_max": round(max(s["waited_s"] for s in saves), 3),
        "time_s_median": round(statistics.median(s["time_s"] for s in saves), 3),
        "median_stall_in_steps": round(statistics.median(stalls_s) / step_s, 3),
        "max_stall_in_steps": round(max(stalls_s) / step_s, 3),
    }


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
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
