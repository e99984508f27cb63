"""Evaluate every case on this rank and print the counts; run by test_exact_evaluation.py.

``evaluate_on_ranks.py FOLDER SETS BATCHES``: FOLDER/<n> is the data set of n images, for each n of
SETS (``1,7``); BATCHES are the batch sizes per device.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from image_classification.config.resolve import resolve
from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.distributed.launcher_env import detect_world
from image_classification.distributed.world import process_group
from image_classification.engine.build import build_parts, open_split
from image_classification.engine.evaluate import evaluate
from image_classification.engine.runs import EvaluationRun, Run
from image_classification.engine.stop import StopRequest

CLASSES = 10


def main(folder: str, sets: list[int], batches: list[int]) -> None:
    """Print ``{"<n> <batch>": [images, top1, top5, loss]}`` from rank 0."""
    world = detect_world(os.environ) or WorldInfo()
    accelerator = get_accelerator("cpu")
    device = accelerator.device(0)
    found: dict[str, list[float]] = {}
    parts = None
    with process_group(world, "gloo", timeout_s=120.0):
        for images in sets:
            for batch in batches:
                config = resolve(
                    "resnet18",
                    "FP32",
                    "evaluate",
                    "CPU",
                    data=f"{folder}/{images}",
                    overrides={
                        "model.num_classes": CLASSES,
                        "data.image_size": 32,
                        "data.resize": 32,
                        "data.workers": 0,
                        "batch.per_device": batch,
                        "batch.global": batch * world.world_size,
                        "platform.num_devices": world.world_size,
                        "run.seed": 5,
                    },
                )
                if parts is None:
                    alone = Run(config, WorldInfo(), accelerator, device, Path(folder))
                    parts = build_parts(alone)
                base = Run(config, world, accelerator, device, Path(folder))
                loader = open_split(base, "val")
                run = EvaluationRun(**vars(base), parts=parts, val_loader=loader)
                result = evaluate(run, parts.model, loader, StopRequest())
                assert result.top5 is not None
                found[f"{images} {batch}"] = [
                    result.images,
                    round(result.top1 * result.images / 100, 9),
                    round(result.top5 * result.images / 100, 9),
                    result.loss,
                ]
                run.close()
    if world.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *([int(n) for n in text.split(",")] for text in sys.argv[2:4]))
