"""Training: optimizer steps, epochs, validation, checkpoints, as a stream of records."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from image_classification.core.errors import DivergedError, WorkspaceError
from image_classification.core.types import EvalResult, Record
from image_classification.core.units import Every
from image_classification.distributed.host_collectives import gather_text
from image_classification.distributed.world import agree_max, all_reduce_sum, broadcast_module_state
from image_classification.engine.build import Run
from image_classification.engine.checkpoints import run_state as saving
from image_classification.engine.checkpoints.async_save import Saver
from image_classification.engine.divergence import diverged
from image_classification.engine.evaluate import evaluate, figures
from image_classification.engine.finiteness import Watch
from image_classification.engine.step import train_step
from image_classification.engine.stop import Stopped, StopRequest, reached, target_result
from image_classification.engine.throughput import TrainMeter, Window


@dataclass
class _Training:
    """What one call of `train` carries from step to step."""

    run: Run
    stop: StopRequest
    saver: Saver
    meter: TrainMeter
    watch: Watch
    loss_sum: torch.Tensor
    epoch_loss_sum: torch.Tensor
    started: float
    elapsed_before_s: float
    last_save: float
    window_steps: int = 0
    epoch_steps: int = 0
    validation_time_s: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    undecodable: set[str] = field(default_factory=set)

    @property
    def steps_per_epoch(self) -> int:
        assert self.run.train_loader is not None
        return self.run.train_loader.steps_per_epoch


def last_step(run: Run, start_step: int) -> int:
    """Return the step the run stops at: the schedule's end, or sooner where asked."""
    assert run.train_loader is not None
    per_epoch = run.train_loader.steps_per_epoch
    control = run.config.run
    ends = [run.config.schedule.epochs * per_epoch]
    if control.stop_epoch is not None:
        ends.append(control.stop_epoch * per_epoch)
    if control.run_epochs is not None:
        ends.append((start_step // per_epoch + control.run_epochs) * per_epoch)
    if control.max_steps is not None:
        ends.append(control.max_steps)
    return min(ends)


def train(run: Run, stop: StopRequest) -> Iterator[Record]:
    """Train to the end, yielding records; the last one (``end``) holds the results.

    Yields: start, step, epoch, validation, validation_ema, checkpoint, warning, end.

    A ``checkpoint`` record comes when its step is whole on the disk, while later steps are trained.

    Raises:
        Stopped: asked to stop, after saving. DivergedError: non-finite loss or weights; the last
            good checkpoint is kept. UserError: anything the user can mend.
    """
    saver = Saver(run)
    try:
        yield from _train(run, stop, saver)
    except DivergedError:
        # What was being written is of a good step, and the newest one to go back to.
        yield from saver.settle()
        raise
    finally:
        saver.close()


def _train(run: Run, stop: StopRequest, saver: Saver) -> Iterator[Record]:
    config, parts = run.config, run.parts
    assert parts is not None and run.train_loader is not None
    resumed_from: str | None = None
    if config.run.resume is not None:
        restored = saving.restore(run)
        for message in restored.warnings:
            yield _record(run, "warning", message=message)
        resumed_from = restored.path
    if resumed_from is None:
        run.progress.note_start(run.world.world_size, None, [])
    now = time.perf_counter()
    zero = torch.zeros((), dtype=torch.float64, device=run.device)
    t = _Training(
        run=run,
        stop=stop,
        saver=saver,
        meter=TrainMeter(run.accelerator, config.run.benchmark_warmup_steps, run.work),
        watch=Watch(run.device, config.run.max_skipped_steps_in_a_row, run.progress.skipped),
        loss_sum=zero.clone(),
        epoch_loss_sum=zero.clone(),
        started=now,
        elapsed_before_s=run.progress.elapsed_s,
        last_save=now,
    )
    begun = run.progress.step if run.counted_from is None else run.counted_from
    end = last_step(run, begun)
    yield _start_record(t, end, resumed_from)
    if run.train_loader.num_quarantined:
        left_out = f"{run.train_loader.num_quarantined} train images are left out"
        yield _record(run, "warning", message=f"{left_out}: quarantine.json lists them")
    every = Every.parse(config.run.save_every)
    if resumed_from is not None:
        saver.saved_step = run.progress.step
    while True:
        epoch, position = divmod(run.progress.step, t.steps_per_epoch)
        if position == 0 and run.progress.step > run.progress.closed_step:
            try:
                yield from _close_epoch(t, epoch - 1)
            except Stopped:
                # A validation may take longer than a scheduler waits: it is done again instead.
                _note_time(t)
                if config.run.save_checkpoints:
                    yield from saver.finish()
                yield _end_record(t)
                raise
        if run.progress.step >= end or _out_of_patience(run) or reached(run):
            break
        try:
            yield from _part_of_epoch(t, epoch, position, end, every)
        except Stopped:
            yield _end_record(t)
            raise
    t.meter.pause()
    if config.run.save_checkpoints:
        try:
            yield from saver.finish()
        except WorkspaceError:
            # What was learnt and measured is reported even where it cannot be saved.
            yield _end_record(t)
            raise
    yield _end_record(t)


def _part_of_epoch(
    t: _Training, epoch: int, position: int, end: int, every: Every
) -> Iterator[Record]:
    run, parts = t.run, t.run.parts
    assert parts is not None and run.train_loader is not None
    save = run.config.run.save_checkpoints
    parts.model.train()
    batches = run.train_loader.epoch(epoch, position)
    t.meter.begin()
    for within in range(position, t.steps_per_epoch):
        metrics = train_step(run, batches, run.progress.step, epoch, t.watch)
        t.meter.step(metrics.num_images, metrics.data_wait_s)
        run.progress.step += 1
        _note_time(t)
        t.loss_sum += metrics.loss
        t.epoch_loss_sum += metrics.loss
        t.window_steps += 1
        t.epoch_steps += 1
        _check_health(t, all_steps=False)
        step = run.progress.step
        closing = within + 1 == t.steps_per_epoch
        if step % run.config.run.log_every_steps == 0 or closing or step >= end:
            yield from _lost_images(t, epoch)
            yield _step_record(t, epoch, within + 1, metrics.lr, end)
        yield from t.saver.poll()
        if t.stop.agreed():
            _check_health(t)
            t.meter.pause()
            if save:
                yield from t.saver.finish()
            raise Stopped(t.stop.signal_name or "another rank's signal")
        due = every.due(step, time.perf_counter() - t.last_save)
        # Time runs differently on each rank, so minutes are rank 0's to decide.
        if every.unit == "minutes":
            due = bool(agree_max(int(due and run.world.rank == 0)))
        if save and due and not closing:
            _check_health(t)
            t.meter.pause()
            yield from t.saver.begin()
            t.last_save = time.perf_counter()
            t.meter.begin()
        if step >= end:
            return


def _lost_images(t: _Training, epoch: int) -> Iterator[Record]:
    """Name each train image that could not be decoded once, whichever rank met it.

    Raises:
        DataError: over all ranks, more of them than ``data.error_budget`` allows.
    """
    assert t.run.train_loader is not None
    known = t.run.train_loader.undecodable
    mine = {name: reason for name, reason in known.items() if name not in t.undecodable}
    if not agree_max(len(mine)):
        return
    found: dict[str, str] = {}
    for told in gather_text(json.dumps(mine)):
        found.update(json.loads(told))
    for name, reason in found.items():
        t.undecodable.add(name)
        yield Record("warning", t.run.progress.step, epoch, {"message": reason})
    known.note(found)


def _close_epoch(t: _Training, epoch: int) -> Iterator[Record]:
    run, config = t.run, t.run.config
    window = t.meter.end_epoch()
    if t.epoch_steps:
        yield _epoch_record(t, epoch, window)
    is_best = False
    if config.run.validate:
        for record in _validate(t, epoch):
            is_best = is_best or bool(record.values["is_best"])
            yield record
    else:
        run.progress.closed_step = run.progress.step
    every = Every.parse(config.run.save_every)
    due = every.due_epoch(epoch + 1)
    if config.run.save_checkpoints and (due or is_best):
        yield from t.saver.begin()
        t.last_save = time.perf_counter()


def _validate(t: _Training, epoch: int) -> Iterator[Record]:
    run, parts = t.run, t.run.parts
    assert parts is not None
    broadcast_module_state(parts.model)
    found = {"validation": evaluate(run, parts.model, stop=t.stop)}
    if parts.ema is not None:
        found["validation_ema"] = evaluate(run, parts.ema.module, stop=t.stop)
    # The average, where there is one, is the model that gets published, so it decides.
    deciding = found.get("validation_ema", found["validation"])
    _note_time(t)
    is_best = run.progress.note_validation(deciding.top1)
    for kind, result in found.items():
        t.validation_time_s += result.time_s
        t.results[kind] = figures(result)
        yield validation_record(run, kind, epoch, result, is_best and result is deciding)


def validation_record(run: Run, kind: str, epoch: int, result: EvalResult, is_best: bool) -> Record:
    """Build the record of one evaluation."""
    values = {
        **figures(result),
        "time_s": result.time_s,
        "images_per_s": result.images / result.time_s if result.time_s > 0 else None,
        "is_best": is_best,
    }
    return Record(kind, run.progress.step, epoch, values)


def _out_of_patience(run: Run) -> bool:
    patience = run.config.run.early_stopping_patience
    return patience is not None and run.progress.validations_without_gain >= patience


def _note_time(t: _Training) -> None:
    t.run.progress.elapsed_s = t.elapsed_before_s + time.perf_counter() - t.started


def _check_health(t: _Training, all_steps: bool = True) -> None:
    """Read the watch (see `Watch.trouble`); the same verdict on every rank.

    Before anything is kept of the present step, all_steps must be read.

    Raises:
        DivergedError: a step the run cannot go on from.
    """
    trouble = t.watch.trouble(all_steps)
    t.run.progress.skipped = t.watch.skipped
    if trouble is not None:
        raise diverged(t.run, trouble)


def _step_record(t: _Training, epoch: int, epoch_step: int, lr: float, end: int) -> Record:
    run, parts = t.run, t.run.parts
    assert parts is not None
    window: Window = t.meter.flush()
    loss = float(all_reduce_sum(t.loss_sum.clone())) / (t.window_steps * run.world.world_size)
    _check_health(t)
    t.loss_sum.zero_()
    t.window_steps = 0
    scale = parts.amp.scale()
    values = {
        "loss": loss,
        "lr": lr,
        "images_per_s": window.images_per_s,
        "data_wait_s": window.data_wait_s / window.steps if window.steps else None,
        "step_time_s": window.time_s / window.steps if window.steps else None,
        "epoch_step": epoch_step,
        "steps_per_epoch": t.steps_per_epoch,
        "total_steps": end,
        "memory_bytes": run.accelerator.peak_memory_bytes(),
        "loss_scale": float(scale) if scale is not None else None,
        "skipped_steps": run.progress.skipped,
    }
    return Record("step", run.progress.step, epoch, values)


def _epoch_record(t: _Training, epoch: int, window: Window) -> Record:
    run = t.run
    assert run.schedule is not None
    loss = float(all_reduce_sum(t.epoch_loss_sum.clone()))
    loss /= t.epoch_steps * run.world.world_size
    values = {
        "images": window.images,
        "time_s": window.time_s,
        "images_per_s": window.images_per_s,
        "compute_images_per_s": window.compute_images_per_s,
        "loss": loss,
        "lr": run.schedule.lr(run.progress.step - 1),
        "steps": t.epoch_steps,
        "data_wait_s": window.data_wait_s,
        "undecodable": len(t.undecodable),
    }
    t.epoch_loss_sum.zero_()
    t.epoch_steps = 0
    return Record("epoch", run.progress.step, epoch, values)


def _record(run: Run, kind: str, **values: Any) -> Record:
    return Record(kind, run.progress.step, 0, values)


def _start_record(t: _Training, end: int, resumed_from: str | None) -> Record:
    run, config = t.run, t.run.config
    parts = run.parts
    assert parts is not None and run.train_loader is not None
    return _record(
        run,
        "start",
        num_parameters=sum(p.numel() for p in parts.model.parameters()),
        steps_per_epoch=t.steps_per_epoch,
        total_steps=end,
        epochs=config.schedule.epochs,
        start_step=run.progress.step,
        num_train_images=run.train_loader.num_images,
        num_val_images=run.val_loader.num_images if run.val_loader is not None else None,
        world_size=run.world.world_size,
        global_batch=config.batch.global_batch,
        device=", ".join(sorted(set(run.accelerator.found().names))),
        data=config.data.path,
        resumed_from=resumed_from,
    )


def _end_record(t: _Training) -> Record:
    run = t.run
    t.meter.flush()
    # Since the run's start, resumed or not: it is what a published figure was reached after.
    done_epochs = run.progress.step / t.steps_per_epoch
    results = {
        "train": t.meter.results(run.world.world_size, done_epochs)
        if t.meter.total_steps
        else None,
        **t.results,
        "target": target_result(run),
        "starts": run.progress.starts,
        "time_s": {
            "total": time.perf_counter() - t.started,
            "train": t.meter.train_time_s,
            "validation": t.validation_time_s if run.config.run.validate else None,
            "first_step": t.meter.first_step_s,
        },
    }
    return _record(run, "end", results=results, best_top1=run.progress.best_top1)
