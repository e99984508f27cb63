"""Exact evaluation: masked integer sums over all ranks, one reduction, the whole set counted."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import nn

from image_classification.core.errors import DataError
from image_classification.core.types import EvalResult
from image_classification.distributed.world import all_reduce_sum
from image_classification.engine.build import Run
from image_classification.engine.stop import Stopped, StopRequest


def figures(result: EvalResult) -> dict[str, float]:
    """Return the figures by name: ``topN`` beside the usual ones where another k was asked."""
    named = {
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "images": result.images,
    }
    if result.topk is not None and result.k not in (1, 5):
        named[f"top{result.k}"] = result.topk
    return named


@torch.no_grad()
def evaluate(
    run: Run, model: nn.Module, epoch: int = 0, *, stop: StopRequest | None = None
) -> EvalResult:
    """Evaluate ``model`` on every validation image exactly once, whatever ranks and batch.

    top1, top5 and topk (``run.topk``) in percent, loss is plain cross-entropy (no smoothing) in
    nats, averaged over images. The model is left in the mode it came in. stop is asked after each
    batch.

    Raises:
        Stopped: asked to stop; all ranks leave at the same batch.
        DataError: the images counted are not the data set's, so no figure can be trusted.
    """
    loader, parts = run.val_loader, run.parts
    assert loader is not None and parts is not None
    classes = run.config.model.num_classes
    five, k = min(5, classes), min(run.config.run.topk, classes)
    # float64 holds integer counts exactly up to 2**53, so one tensor and one reduction do.
    sums = torch.zeros(5, dtype=torch.float64, device=run.device)
    was_training = model.training
    model.eval()
    started = time.perf_counter()
    try:
        for batch in loader.epoch(epoch):
            with parts.amp.autocast():
                logits = model(batch.images)
            logits = logits.float()
            losses = F.cross_entropy(logits, batch.labels, reduction="none")
            hits = logits.topk(max(five, k), dim=1).indices == batch.labels[:, None]
            valid = batch.valid
            sums += torch.stack(
                [
                    (hits[:, 0] & valid).sum(),
                    (hits[:, :five].any(dim=1) & valid).sum(),
                    (hits[:, :k].any(dim=1) & valid).sum(),
                    valid.sum(),
                    # where, not a product: padding may hold anything, even NaN.
                    torch.where(valid, losses, 0.0).double().sum(),
                ]
            )
            if stop is not None and stop.agreed():
                raise Stopped(stop.signal_name or "another rank's signal")
    finally:
        model.train(was_training)
    top1, top5, topk, images, loss = all_reduce_sum(sums).tolist()
    time_s = time.perf_counter() - started
    if int(images) != loader.num_images:
        raise DataError(
            f"evaluation saw {int(images)} images but the data set has {loader.num_images}: "
            "the data set changed while it was read; check it and start again"
        )
    return EvalResult(
        top1=100.0 * top1 / images,
        top5=100.0 * top5 / images,
        loss=loss / images,
        images=int(images),
        time_s=time_s,
        k=run.config.run.topk,
        topk=100.0 * topk / images,
    )
