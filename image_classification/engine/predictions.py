"""The prediction of every image of an evaluation, and the details that are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.io import encode_jpeg
from torchvision.transforms.v2 import functional as ops

from image_classification.core.errors import UserError
from image_classification.core.units import printable
from image_classification.data.loaders import Loader
from image_classification.data.order import PADDING, ValOrder
from image_classification.data.transforms import decode_rgb
from image_classification.distributed.collectives import all_reduce_sum
from image_classification.engine.runs import EvaluationRun, TrainingRun
from image_classification.reporting.evaluation import (
    MAX_MISTAKES,
    EvaluationDetails,
    Mistake,
    class_names,
    read_details,
)

THUMBNAIL_PX = 160
"""Longer side of a thumbnail at most; smaller images keep their size."""


@dataclass(frozen=True)
class Predictions:
    """Of every image of the split, in the order of its index; on the CPU.

    labels, predicted: ``[N]`` int64. probability, true_probability: ``[N]`` float64, softmax of the
    predicted and of the true class.
    """

    labels: torch.Tensor
    predicted: torch.Tensor
    probability: torch.Tensor
    true_probability: torch.Tensor


class PredictionRecorder:
    """Collects the predictions of one evaluation on the device, without waiting for it.

    Every loader yields the validation images in the order of `ValOrder`, so the position of a row
    says which image it is.
    """

    def __init__(self, run: TrainingRun | EvaluationRun, loader: Loader) -> None:
        batch, world = run.config.batch.per_device_batch, run.world
        order = ValOrder(loader.num_images, batch, world.rank, world.world_size).batches(0)
        self._indices = torch.from_numpy(order).reshape(-1)
        self._num_images = loader.num_images
        # float64 holds labels and float32 probabilities exactly.
        self._rows = torch.zeros((5, *order.shape), dtype=torch.float64, device=run.device)
        self._num_batches = 0

    def add(
        self,
        logits: torch.Tensor,
        predicted: torch.Tensor,
        losses: torch.Tensor,
        labels: torch.Tensor,
        valid: torch.Tensor,
    ) -> None:
        """Record the next batch.

        logits: ``[B, C]`` float32; losses: their cross-entropy, ``[B]`` like the others.
        """
        probability = (logits.amax(dim=1) - logits.logsumexp(dim=1)).exp()
        columns = (valid, labels, predicted, probability, losses.neg().exp())
        self._rows[:, self._num_batches] = torch.stack([column.double() for column in columns])
        self._num_batches += 1

    def gather(self) -> Predictions:
        """Return the predictions of all ranks, on each of them.

        Raises:
            RuntimeError: the loader did not yield each image once, in the order of the index.
        """
        rows = self._rows.reshape(5, -1)
        known = (self._indices != PADDING).to(rows.device)
        everything = rows.new_zeros((5, self._num_images))
        # Every image belongs to one rank and is 0 in the others, so the sum is exact.
        everything[:, self._indices.to(rows.device)[known]] = rows[:, known]
        valid, labels, predicted, probability, true_probability = all_reduce_sum(everything).cpu()
        if not bool((valid == 1).all()):
            raise RuntimeError("the loader's validation images are not in the order of the index")
        return Predictions(labels.long(), predicted.long(), probability, true_probability)


def evaluation_details(
    predictions: Predictions, loader: Loader, num_classes: int, upright: bool = False
) -> tuple[EvaluationDetails, dict[str, bytes]]:
    """Return the details of an evaluation, and the thumbnails of its mistakes by file name.

    loader: reads the images of the mistakes again; one that cannot be read has no thumbnail.
    upright: apply the EXIF orientation.
    """
    classes = class_names(loader.classes, num_classes)
    pairs, counts = torch.unique(
        predictions.labels * num_classes + predictions.predicted, return_counts=True
    )
    confusion = {
        divmod(pair, num_classes): count
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
    }
    wrong = (predictions.labels != predictions.predicted).nonzero().flatten()
    # NaN, of a diverged model, would come first.
    order = predictions.probability[wrong].nan_to_num(nan=0.0).sort(stable=True, descending=True)
    mistakes: list[Mistake] = []
    thumbnails: dict[str, bytes] = {}
    for index in wrong[order.indices[:MAX_MISTAKES]].tolist():
        name = loader.sample_name(index)
        file, problem = f"mistake-{len(mistakes) + 1:02d}.jpg", None
        try:
            content = loader.read_sample(index)
            if content is None:
                problem = "synthetic images have no file"
            else:
                thumbnails[file] = thumbnail(content, name, upright)
        except (UserError, RuntimeError) as error:
            problem = printable(str(error).splitlines()[0])
        mistakes.append(
            Mistake(
                printable(name),
                classes[int(predictions.labels[index])],
                classes[int(predictions.predicted[index])],
                float(predictions.probability[index]),
                float(predictions.true_probability[index]),
                file if file in thumbnails else None,
                problem,
            )
        )
    return EvaluationDetails(classes, confusion, tuple(mistakes)), thumbnails


def thumbnail(content: Any, name: str, upright: bool = False) -> bytes:
    """Return an encoded image (``[bytes]`` uint8) as a JPEG of at most `THUMBNAIL_PX`.

    Raises:
        DataError: it cannot be decoded.
    """
    image = decode_rgb(content, name, upright)
    height, width = image.shape[1:]
    scale = THUMBNAIL_PX / max(height, width)
    if scale < 1:
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = ops.resize(image, size, antialias=True)
    return bytes(encode_jpeg(image, quality=85).numpy())


def write_evaluation(
    run: TrainingRun | EvaluationRun, predictions: Predictions | None, loader: Loader
) -> tuple[dict[str, Any] | None, str]:
    """Write the details of an evaluation into the run's folder, on rank 0.

    predictions: None if this start of a training run found no better weights than an earlier
    start, whose files then stay.

    Returns ``results.evaluation`` of the report (None for synthetic images), and "" or why the
    files could not be written or read; the measured figures do not depend on them.
    """
    if run.world.rank != 0 or run.config.data.backend == "synthetic":
        return None, ""
    try:
        if predictions is None:
            earlier = read_details(run.workspace)
            if earlier is None:
                return None, ""
            top1 = 100 * (1 - earlier.num_mistakes / max(earlier.images, 1))
            if not math.isclose(top1, run.progress.best_top1 or 0.0, abs_tol=1e-9):
                return None, (
                    "the report has no details of the best validation: the start that made it was "
                    f"killed before it wrote them; --from {run.workspace} --mode evaluate "
                    "makes them"
                )
            return earlier.summary(), ""
        classes, upright = run.config.model.num_classes, run.config.data.exif_orientation
        details, thumbnails = evaluation_details(predictions, loader, classes, upright)
        details.write(run.workspace, thumbnails)
        return details.summary(), ""
    except UserError as error:
        return None, f"the report has no details of the evaluation: {error}"
