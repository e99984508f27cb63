"""Benchmarks without training: inference latency by batch size, and the loader alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from image_classification.core.errors import DataError
from image_classification.core.types import Record
from image_classification.distributed.collectives import all_reduce_sum, barrier
from image_classification.engine.checkpoints.restore import restore_weights
from image_classification.engine.runs import EvaluationRun, LoaderBenchmark
from image_classification.engine.stop import StopRequest
from image_classification.engine.throughput import percentiles, time_results

_WARMUP_PASSES = 10


@torch.no_grad()
def benchmark_inference(run: EvaluationRun, stop: StopRequest) -> Iterator[Record]:
    """Time forward passes for each of ``run.inference_batches`` (``--mode benchmark_inference``).

    Latency is from a batch on the device to logits on the host, in milliseconds. The images are
    the first of the validation set (repeated where a batch is larger), so preprocessing and data
    are those of the run; loading them is not timed.
    """
    config, model = run.config, run.parts.model
    started = time.perf_counter()
    checkpoint, warnings = restore_weights(run)
    if checkpoint is None and config.model.pretrained_from_file is None:
        warnings = ["weights are random: speed does not depend on them"]
    for message in [*run.notes, *warnings]:
        yield run.record("warning", message=message)
    yield run.start_record(model=model, val_loader=run.val_loader)
    run.activity.begin("reading images")
    images = _first_images(run, max(config.run.inference_batches))
    passes = _WARMUP_PASSES + config.run.inference_iterations
    forward = torch.compile(model) if config.model.compile else model
    model.eval()
    measured = []
    for batch_size in config.run.inference_batches:
        batch = images[:batch_size].clone(memory_format=torch.preserve_format)
        latencies_s = []
        run.activity.quiet = False
        run.activity.begin(f"timing {passes} passes of batch {batch_size}")
        for i in range(passes):
            stop.check()
            run.accelerator.synchronize()
            if i == _WARMUP_PASSES:
                run.activity.quiet = True
                run.work.begin(measured=True)
            pass_started = time.perf_counter()
            with run.parts.amp.autocast():
                logits = forward(batch)
            logits.float().cpu()
            if i >= _WARMUP_PASSES:
                latencies_s.append(time.perf_counter() - pass_started)
                run.work.note(batch_size * run.world.world_size)
        run.work.end()
        # All ranks run the same batch at once; the rate is of all devices, the latency rank 0's.
        rate = torch.tensor(batch_size * len(latencies_s) / sum(latencies_s), dtype=torch.float64)
        images_per_s = float(all_reduce_sum(rate.to(run.device)))
        latencies_ms = [1000.0 * s for s in latencies_s]
        mean_ms = sum(latencies_ms) / len(latencies_ms)
        latency_ms = {"mean": mean_ms, **percentiles(latencies_ms, (50, 90, 95, 99))}
        row = {"batch": batch_size, "images_per_s": images_per_s}
        measured.append({**row, "latency_ms": latency_ms})
        named = {f"latency_ms_{name}": ms for name, ms in latency_ms.items()}
        run.activity.quiet = False
        yield Record("inference", run.progress.step, 0, {**row, **named})
    results = {"inference": measured, "time_s": time_results(time.perf_counter() - started)}
    yield run.record("end", results=results)


def _first_images(run: EvaluationRun, count: int) -> torch.Tensor:
    """Return ``[count, 3, H, W]`` validation images on the device, in the run's layout."""
    gathered: list[torch.Tensor] = []
    for batch in run.val_loader.epoch(0):
        gathered.append(batch.images[batch.valid])
        if sum(map(len, gathered)) >= count:
            break
    found = sum(map(len, gathered))
    if found == 0:
        raise DataError("this rank has no validation image: use fewer devices or more images")
    images = torch.cat(gathered).repeat(-(-count // found), 1, 1, 1)[:count]
    channels_last = run.config.model.memory_format == "nhwc"
    return images.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def benchmark_data(run: LoaderBenchmark, stop: StopRequest) -> Iterator[Record]:
    """Time the training loader alone, on every rank at once (``--mode benchmark_data``)."""
    config, loader = run.config, run.train_loader
    global_batch = config.batch.global_batch
    yield run.start_record(train_loader=loader)
    started = window_started = time.perf_counter()
    steps = loader.steps_per_epoch
    if config.run.max_steps is not None:
        steps = min(steps, config.run.max_steps)
    warmup_steps = min(config.run.benchmark_warmup_steps, steps // 10)
    batches = loader.epoch(0)
    run.activity.begin("reading batches", steps, "steps")
    run.work.begin(measured=warmup_steps == 0)
    for step in range(steps):
        for _ in range(config.batch.accumulation):
            next(batches)
        stop.check()
        run.work.note(global_batch)
        run.activity.done = step + 1
        if step + 1 == warmup_steps:
            run.accelerator.synchronize()
            barrier()
            run.work.measure()
            window_started = time.perf_counter()
    run.accelerator.synchronize()
    barrier()
    ended = time.perf_counter()
    run.work.end()
    images, time_s = (steps - warmup_steps) * global_batch, ended - window_started
    rate = images / time_s if images else None
    yield run.record("data", images_per_s=rate, images=images, time_s=time_s)
    data = {"images_per_s": rate}
    yield run.record("end", results={"data": data, "time_s": time_results(ended - started)})
