"""Measuring without learning: inference latency by batch size, and the loader alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from image_classification.core.errors import ConfigError, DataError
from image_classification.core.types import Record
from image_classification.distributed.world import all_reduce_sum, barrier
from image_classification.engine.build import Run
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints import run_state as saving
from image_classification.engine.checkpoints.resume_checks import other_contract
from image_classification.engine.evaluate import evaluate, figures
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.engine.throughput import percentiles
from image_classification.engine.train import validation_record

_WARMUP_PASSES = 10


def evaluate_run(run: Run, stop: StopRequest) -> Iterator[Record]:
    """Evaluate given weights on the whole validation set (``--mode evaluate``).

    Raises:
        ConfigError: no weights were named: random ones would only look like a result.
        CheckpointError: they cannot be used. DataError: the data set cannot.
    """
    parts, config = run.parts, run.config
    assert parts is not None and run.val_loader is not None
    if config.run.resume is None and config.model.pretrained_from_file is None:
        raise ConfigError(
            "nothing to evaluate: name weights with --resume RUN_OR_CHECKPOINT or "
            "--pretrained-from-file FILE.safetensors"
        )
    started = time.perf_counter()
    restored = saving.restore_weights(run)
    for message in [*restored.warnings, *other_contract(_weights(run, restored), config.data)]:
        yield _record(run, "warning", message=message)
    yield _start(run)
    results: dict[str, Any] = {}
    run.work.begin(measured=True)
    found = {"validation": evaluate(run, parts.model, stop=stop)}
    if parts.ema is not None and restored.path is not None:
        found["validation_ema"] = evaluate(run, parts.ema.module, stop=stop)
    run.work.note(sum(result.images for result in found.values()))
    run.work.end()
    for kind, result in found.items():
        results[kind] = figures(result)
        yield validation_record(run, kind, 0, result, is_best=False)
    results["time_s"] = {
        "total": time.perf_counter() - started,
        "train": None,
        "validation": sum(r.time_s for r in found.values()),
        "first_step": None,
    }
    yield _record(run, "end", results=results)


def _weights(run: Run, restored: saving.Restored) -> Path:
    """Return the file that the evaluated weights are from."""
    if restored.path is not None:
        return checkpoint.weights_of(Path(restored.path))
    assert run.config.model.pretrained_from_file is not None
    return Path(run.config.model.pretrained_from_file)


@torch.no_grad()
def benchmark_inference(run: Run, stop: StopRequest) -> Iterator[Record]:
    """Time forward passes for each of ``run.inference_batches`` (``--mode benchmark_inference``).

    Latency is from a batch on the device to logits on the host, in milliseconds. The images are
    the first of the validation set (repeated where a batch is larger), so preprocessing and data
    are those of the run; loading them is not timed.
    """
    parts, config = run.parts, run.config
    assert parts is not None and run.val_loader is not None
    started = time.perf_counter()
    restored = saving.restore_weights(run)
    for message in restored.warnings:
        yield _record(run, "warning", message=message)
    if restored.path is None and config.model.pretrained_from_file is None:
        yield _record(run, "warning", message="weights are random: speed does not depend on them")
    yield _start(run)
    images = _some_images(run, max(config.run.inference_batches))
    model = torch.compile(parts.model) if config.model.compile else parts.model
    parts.model.eval()
    measured = []
    for batch_size in config.run.inference_batches:
        batch = images[:batch_size].clone(memory_format=torch.preserve_format)
        latencies_s = []
        for i in range(_WARMUP_PASSES + config.run.inference_iterations):
            if stop.agreed():
                raise Stopped(stop.signal_name or "another rank's signal")
            run.accelerator.synchronize()
            if i == _WARMUP_PASSES:
                run.work.begin(measured=True)
            begun = time.perf_counter()
            with parts.amp.autocast():
                logits = model(batch)
            logits.float().cpu()
            if i >= _WARMUP_PASSES:
                latencies_s.append(time.perf_counter() - begun)
                run.work.note(batch_size * run.world.world_size)
        run.work.end()
        measured.append(_inference_result(run, batch_size, latencies_s))
        flat = {f"latency_ms_{k}": v for k, v in measured[-1]["latency_ms"].items()}
        yield _record(
            run,
            "inference",
            batch=batch_size,
            images_per_s=measured[-1]["images_per_s"],
            **flat,
        )
    results = {
        "inference": measured,
        "time_s": _only_total(time.perf_counter() - started),
    }
    yield _record(run, "end", results=results)


def _inference_result(run: Run, batch_size: int, latencies_s: list[float]) -> dict[str, Any]:
    # All ranks run the same batch at once; the rate is of all devices, the latency rank 0's.
    total_s = sum(latencies_s)
    rate = torch.tensor(batch_size * len(latencies_s) / total_s, dtype=torch.float64)
    rate = all_reduce_sum(rate.to(run.device))
    in_ms = [1000.0 * s for s in latencies_s]
    return {
        "batch": batch_size,
        "images_per_s": float(rate),
        "latency_ms": {
            "mean": sum(in_ms) / len(in_ms),
            **percentiles(in_ms, (50, 90, 95, 99)),
        },
    }


def _some_images(run: Run, count: int) -> torch.Tensor:
    """Return ``[count, 3, H, W]`` validation images on the device."""
    assert run.val_loader is not None
    gathered: list[torch.Tensor] = []
    have = 0
    for batch in run.val_loader.epoch(0):
        kept = batch.images[batch.valid]
        gathered.append(kept)
        have += len(kept)
        if have >= count:
            break
    if have == 0:
        raise DataError("this rank has no validation image: use fewer devices or more images")
    images = torch.cat(gathered)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    layout = (
        torch.channels_last if run.config.model.memory_format == "nhwc" else torch.contiguous_format
    )
    return images.contiguous(memory_format=layout)


def benchmark_data(run: Run, stop: StopRequest) -> Iterator[Record]:
    """Time the training loader alone, on every rank at once (``--mode benchmark_data``)."""
    config, loader = run.config, run.train_loader
    assert loader is not None
    yield _start(run)
    started = time.perf_counter()
    micro_batches = 0
    wanted = loader.steps_per_epoch
    if config.run.max_steps is not None:
        wanted = min(wanted, config.run.max_steps)
    warmup = min(config.run.benchmark_warmup_steps, wanted // 10)
    begun = time.perf_counter()
    measured = 0
    batches = loader.epoch(0)
    run.work.begin(measured=warmup == 0)
    for step in range(wanted):
        for _ in range(config.batch.accumulation):
            next(batches)
            micro_batches += 1
        if stop.agreed():
            raise Stopped(stop.signal_name or "another rank's signal")
        run.work.note(config.batch.global_batch)
        if step + 1 == warmup:
            run.accelerator.synchronize()
            barrier()
            run.work.measure()
            begun = time.perf_counter()
        elif step + 1 > warmup:
            measured += config.batch.global_batch
    run.accelerator.synchronize()
    barrier()
    time_s = time.perf_counter() - begun
    run.work.end()
    rate = measured / time_s if measured else None
    yield _record(run, "data", images_per_s=rate, images=measured, time_s=time_s)
    results = {
        "data": {"images_per_s": rate},
        "time_s": _only_total(time.perf_counter() - started),
    }
    yield _record(run, "end", results=results)


def _only_total(total_s: float) -> dict[str, float | None]:
    return {"total": total_s, "train": None, "validation": None, "first_step": None}


def _record(run: Run, kind: str, **values: Any) -> Record:
    return Record(kind, run.progress.step, 0, values)


def _start(run: Run) -> Record:
    parts, config = run.parts, run.config
    return _record(
        run,
        "start",
        num_parameters=sum(p.numel() for p in parts.model.parameters()) if parts else None,
        num_train_images=run.train_loader.num_images if run.train_loader else None,
        num_val_images=run.val_loader.num_images if run.val_loader else None,
        world_size=run.world.world_size,
        global_batch=config.batch.global_batch,
        device=", ".join(sorted(set(run.accelerator.found().names))),
        data=config.data.path,
    )
