"""``launch.py`` with a fault: run by test_finiteness.py and test_restore.py.

FAULT=KIND:RANK:STEP in the environment. KIND is ``loss`` (NaN in the images of that step) or
``gradient`` (NaN in one gradient, finite loss). SAMPLES=FILE: what each rank decodes is appended.
"""

import json
import math
import os
import sys
from pathlib import Path

import image_classification.engine.train as engine
from image_classification.__main__ import run
from image_classification.core.types import Batch
from image_classification.data.loaders.pytorch import ImageBatches
from image_classification.engine.step import train_step


def with_fault(kind, rank, at_step):

    def step(run, batches, step, epoch, monitor):
        if run.world.rank != rank or step != at_step:
            return train_step(run, batches, step, epoch, monitor)
        if kind == "loss":
            batch = next(batches)
            bad = Batch(batch.images * math.nan, batch.labels, batch.valid)
            return train_step(run, iter([bad]), step, epoch, monitor)
        parameter = next(run.parts.model.parameters())
        hook = parameter.register_hook(lambda gradient: gradient * math.nan)
        metrics = train_step(run, batches, step, epoch, monitor)
        hook.remove()
        return metrics

    engine.train_step = step  # type: ignore[attr-defined]


def with_samples(path):
    decode = ImageBatches.__getitem__

    def getitem(self, request):
        epoch, indices = request
        if self.spec.split == "train":
            with open(path, "a") as file:
                file.write(json.dumps({"epoch": epoch, "indices": indices.tolist()}) + "\n")
        return decode(self, request)

    ImageBatches.__getitem__ = getitem  # type: ignore[method-assign]


if __name__ == "__main__":
    if "FAULT" in os.environ:
        kind, rank, at_step = os.environ["FAULT"].split(":")
        with_fault(kind, int(rank), int(at_step))
    if "SAMPLES" in os.environ:
        with_samples(Path(os.environ["SAMPLES"]))
    sys.exit(run(["launch", *sys.argv[1:]]))
