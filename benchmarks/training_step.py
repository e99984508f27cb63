#!/usr/bin/env python3
"""ResNet-50 training speed on this machine's CPU: 224 px, batch 32, synthetic data.

Runs the package's own training loop, so forward, backward, update and the loop's bookkeeping are
in the figure, and image decoding is not. The first steps (``--warmup``) are not measured.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, write_record

from image_classification.config import resolve
from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine.build import build_training
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train

BATCH = 32
IMAGE_SIZE_PX = 224
VARIANTS = {
    "FP32 nchw": ("FP32", "nchw"),
    "FP32 nhwc": ("FP32", "nhwc"),
    "BF16 nhwc": ("BF16", "nhwc"),
}


def measure(precision: str, memory_format: str, warmup: int, steps: int) -> dict[str, Any]:
    """Train ``warmup + steps`` steps; return ``results.train`` of the run's report."""
    config = resolve(
        "resnet50",
        precision,
        "benchmark_training_short",
        "CPU",
        data="synthetic",
        overrides={
            "model.num_classes": 1000,
            "model.memory_format": memory_format,
            "data.image_size": IMAGE_SIZE_PX,
            "batch.per_device": BATCH,
            "batch.global": BATCH,
            "run.max_steps": warmup + steps,
            "run.benchmark_warmup_steps": warmup,
        },
    )
    accelerator = get_accelerator("cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = build_training(
            Run(config, WorldInfo(), accelerator, accelerator.device(0), Path(folder))
        )
        try:
            *_, end = train(run, StopRequest())
        finally:
            run.close()
    results: dict[str, Any] = end.values["results"]["train"]
    return results


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not measured")
    parser.add_argument("--steps", type=int, default=6, help="measured steps")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    variants = {}
    for name, (precision, memory_format) in VARIANTS.items():
        found = measure(precision, memory_format, arguments.warmup, arguments.steps)
        variants[name] = {
            "images_per_s": round(found["images_per_s"], 2),
            "step_time_s": {k: round(v, 3) for k, v in found["step_time_s"].items()},
        }
        print(f"{name:<10} {variants[name]['images_per_s']:6.2f} images/s")
    figures = {
        "model": "resnet50",
        "image_size_px": IMAGE_SIZE_PX,
        "batch": BATCH,
        "num_threads": torch.get_num_threads(),
        "warmup_steps": arguments.warmup,
        "measured_steps": arguments.steps,
        "variants": variants,
    }
    print(write_record("training_step", figures, ["torch", "torchvision"], arguments.out))


if __name__ == "__main__":
    main()
