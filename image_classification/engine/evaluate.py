"""Evaluate a model exactly: each image is counted once, in sums reduced once over all ranks."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from image_classification.core.errors import ConfigError, DataError
from image_classification.core.files import sha256_of
from image_classification.core.types import EvalResult, Record
from image_classification.data.loaders import Loader
from image_classification.distributed.collectives import all_reduce_sum
from image_classification.engine.checkpoints.files import weights_file
from image_classification.engine.checkpoints.restore import preprocessing_warnings, restore_weights
from image_classification.engine.predictions import PredictionRecorder, write_evaluation
from image_classification.engine.runs import EvaluationRun, TrainingRun
from image_classification.engine.stop import StopRequest
from image_classification.engine.throughput import time_results


@torch.no_grad()
def evaluate(
    run: TrainingRun | EvaluationRun,
    model: nn.Module,
    loader: Loader,
    stop: StopRequest,
    recorder: PredictionRecorder | None = None,
) -> EvalResult:
    """Evaluate ``model`` on every image of ``loader`` exactly once, for any batch and world size.

    top1, top5 and topk (``run.topk``) in percent; loss is plain cross-entropy (no smoothing) in
    nats, averaged over images. The model's training mode is restored. recorder: receives the
    prediction of every image.

    Raises:
        Stopped: asked to stop; all ranks leave at the same batch.
        DataError: the number of images counted is not the data set's.
    """
    classes = run.config.model.num_classes
    five, k = min(5, classes), min(run.config.run.topk, classes)
    # float64 holds integer counts exactly up to 2**53, so one tensor and one reduction suffice.
    sums = torch.zeros(5, dtype=torch.float64, device=run.device)
    was_training = model.training
    model.eval()
    task = "validating" if model is run.parts.model else "validating the average"
    run.activity.begin(task, loader.num_images, "images")
    started = time.perf_counter()
    try:
        for batch in loader.epoch(0):
            with run.parts.amp.autocast():
                logits = model(batch.images)
            logits = logits.float()
            losses = F.cross_entropy(logits, batch.labels, reduction="none")
            best = logits.topk(max(five, k), dim=1).indices
            hits = best == batch.labels[:, None]
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
            # All ranks together; the last batch may be padded.
            seen = run.activity.done + len(batch.labels) * run.world.world_size
            run.activity.done = min(seen, loader.num_images)
            if recorder is not None:
                recorder.add(logits, best[:, 0], losses, batch.labels, valid)
            stop.check()
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
        top5=100.0 * top5 / images if classes > 5 else None,
        loss=loss / images,
        images=int(images),
        time_s=time_s,
        k=run.config.run.topk,
        topk=100.0 * topk / images if classes > run.config.run.topk else None,
    )


def evaluate_all(
    run: TrainingRun | EvaluationRun, loader: Loader, stop: StopRequest, with_ema: bool = True
) -> tuple[dict[str, EvalResult], PredictionRecorder]:
    """Evaluate the weights and, if the run has one, their moving average.

    Returns the results by the kind of their record, and the predictions of the model that counts:
    the moving average if it was evaluated.
    """
    models = {"validation": run.parts.model}
    if run.parts.ema is not None and with_ema:
        models["validation_ema"] = run.parts.ema.module
    found = {}
    for kind, model in models.items():
        recorder = PredictionRecorder(run, loader)
        found[kind] = evaluate(run, model, loader, stop, recorder)
    return found, recorder


def validation_set(loader: Loader) -> str:
    """Return 16 hex digits that identify the images of ``loader`` by their names, in any order."""
    names = sorted(loader.sample_name(i) for i in range(loader.num_images))
    content = os.fsencode("\0".join(names))
    return hashlib.sha256(content).hexdigest()[:16]


def figures(result: EvalResult) -> dict[str, float | None]:
    """Return the figures by name, with ``topK`` if ``run.topk`` is neither 1 nor 5."""
    named = {key: getattr(result, key) for key in ("top1", "top5", "loss", "images")}
    if result.topk is not None and result.k not in (1, 5):
        named[f"top{result.k}"] = result.topk
    return named


def validation_record(
    run: TrainingRun | EvaluationRun, kind: str, epoch: int, result: EvalResult, is_best: bool
) -> Record:
    """Return the record of one evaluation; kind: ``validation`` or ``validation_ema``."""
    return run.record(
        kind,
        epoch,
        **figures(result),
        time_s=result.time_s,
        images_per_s=result.images / result.time_s if result.time_s > 0 else None,
        is_best=is_best,
    )


def evaluate_run(run: EvaluationRun, stop: StopRequest) -> Iterator[Record]:
    """Evaluate given weights on the whole validation set (``--mode evaluate``).

    Raises:
        ConfigError: no weights were named; random ones would look like a result.
    """
    config = run.config
    pretrained = config.model.pretrained_from_file
    if config.run.resume is None and pretrained is None:
        raise ConfigError(
            "nothing to evaluate: name weights with --resume RUN_OR_CHECKPOINT or "
            "--pretrained-from-file FILE.safetensors"
        )
    started = time.perf_counter()
    run.activity.begin("loading the weights")
    checkpoint, warnings = restore_weights(run)
    source = weights_file(checkpoint) if checkpoint else Path(pretrained or "")
    digest = sha256_of(source) if run.world.rank == 0 else None
    for message in [*run.notes, *warnings, *preprocessing_warnings(source, config.data)]:
        yield run.record("warning", message=message)
    yield run.start_record(model=run.parts.model, val_loader=run.val_loader)
    for note in run.val_loader.notes:
        yield run.record("warning", message=note)
    run.work.begin(measured=True)
    # A file of weights holds no moving average beside them.
    found, predictions = evaluate_all(run, run.val_loader, stop, with_ema=checkpoint is not None)
    run.work.note(sum(result.images for result in found.values()))
    run.work.end()
    for kind, result in found.items():
        yield validation_record(run, kind, 0, result, is_best=False)
    validation_s = sum(result.time_s for result in found.values())
    times = time_results(time.perf_counter() - started, validation_s=validation_s)
    evaluated: dict[str, Any] = {kind: figures(result) for kind, result in found.items()}
    evaluated["evaluation"], problem = write_evaluation(run, predictions.gather(), run.val_loader)
    if problem:
        yield run.record("warning", message=problem)
    evaluated["validation_set"] = validation_set(run.val_loader)
    evaluated["weights_sha256"] = digest
    evaluated["evaluated"] = None if run.source is None else run.source.values
    yield run.record("end", results={**evaluated, "time_s": times})
