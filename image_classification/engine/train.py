"""Train: run optimizer steps, epochs, validations and saves, and yield a record of each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import torch

from image_classification.core.errors import DivergedError, WorkspaceError
from image_classification.core.types import Record
from image_classification.core.units import Every
from image_classification.data.loaders import Loader, loader_notes
from image_classification.devices.async_readback import Readback
from image_classification.distributed.collectives import (
    agree_max,
    all_reduce_sum,
    broadcast_module_state,
    gather_text,
)
from image_classification.engine.checkpoints.restore import restore
from image_classification.engine.checkpoints.save import CheckpointSaver
from image_classification.engine.evaluate import (
    evaluate_all,
    figures,
    validation_record,
    validation_set,
)
from image_classification.engine.finiteness import FinitenessMonitor, report_divergence
from image_classification.engine.predictions import Predictions, write_evaluation
from image_classification.engine.runs import TrainingRun
from image_classification.engine.step import train_step
from image_classification.engine.stop import Stopped, StopRequest, should_end, target_result
from image_classification.engine.throughput import ThroughputMeter, time_results


def train(run: TrainingRun, stop: StopRequest) -> Iterator[Record]:
    """Train to the end, yielding records; the last one (``end``) holds the results.

    Yields: start, step, epoch, validation, validation_ema, checkpoint, warning, end. Training goes
    on while a checkpoint is written; its record comes once it is complete on the disk.

    Raises:
        Stopped: asked to stop, after saving. DivergedError: non-finite loss or weights; the last
            good checkpoint is kept. UserError: anything the user can fix.
    """
    saver = CheckpointSaver(run)
    try:
        if run.config.run.resume is not None:
            run.activity.begin("loading the checkpoint")
        checkpoint, warnings = restore(run)
        for message in [*run.notes, *warnings]:
            yield run.record("warning", message=message)
        if checkpoint is None:
            run.progress.note_start(run.world.world_size, None, [])
        else:
            saver.saved_step = run.progress.step
        yield from _Trainer(run, stop, saver).records()
    except DivergedError:
        # The checkpoint being written precedes the divergence: complete it, to continue from it.
        yield from saver.wait_for_pending()
        raise
    finally:
        saver.close()


def last_step(run: TrainingRun, start_step: int) -> int:
    """Return the step the run ends at: the end of the schedule, or earlier if set.

    start_step: the step ``run.run_epochs`` counts from.
    """
    per_epoch = run.steps_per_epoch
    control = run.config.run
    ends = [run.config.schedule.epochs * per_epoch]
    if control.stop_epoch is not None:
        ends.append(control.stop_epoch * per_epoch)
    if control.run_epochs is not None:
        ends.append((start_step // per_epoch + control.run_epochs) * per_epoch)
    if control.max_steps is not None:
        ends.append(control.max_steps)
    return min(ends)


class _Trainer:
    """The state of one call of `train`."""

    def __init__(self, run: TrainingRun, stop: StopRequest, saver: CheckpointSaver) -> None:
        control, progress = run.config.run, run.progress
        self.run = run
        self.stop = stop
        self.saver = saver
        self.meter = ThroughputMeter(run.accelerator, control.benchmark_warmup_steps, run.work)
        self.monitor = FinitenessMonitor(
            run.device, control.max_skipped_steps_in_a_row, progress.skipped
        )
        self.save_every = Every.parse(control.save_every)
        self.saves = control.save_checkpoints
        # Loss sums since the last step record, and over the epoch; on the device.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=run.device)
        self.epoch_loss_sum = self.loss_sum.clone()
        self.recorded_steps = 0
        self.epoch_steps = 0
        self.first_step = progress.step + 1
        self.started = self.last_save = time.perf_counter()
        self.elapsed_before_s = progress.elapsed_s
        self.validation_time_s = 0.0
        self.results: dict[str, Any] = {}
        self.best_predictions: Predictions | None = None
        self.undecodable: set[str] = set()
        self.loss_copy: Readback | None = None
        self.loss_copied_at_s = 0.0
        counted_from = run.run_epochs_from
        self.end_step = last_step(run, progress.step if counted_from is None else counted_from)

    def records(self) -> Iterator[Record]:
        run, progress = self.run, self.run.progress
        yield run.start_record(
            model=run.parts.model,
            steps_per_epoch=run.steps_per_epoch,
            total_steps=self.end_step,
            epochs=run.config.schedule.epochs,
            start_step=progress.step,
            train_loader=run.train_loader,
            val_loader=run.val_loader,
            resumed_from=progress.starts[-1]["resumed_from"],
        )
        for note in loader_notes(run.train_loader, run.val_loader):
            yield run.record("warning", message=note)
        if run.train_loader.num_quarantined:
            left_out = f"{run.train_loader.num_quarantined} train images are left out"
            yield run.record("warning", message=f"{left_out}: quarantine.json lists them")
        if progress.step >= self.end_step:
            yield run.record(
                "warning",
                message=f"no steps are left to train: the run ends at step {self.end_step:,}; "
                "continue with more --epochs and --allow-changes",
            )
        ending: Exception | None = None
        try:
            while True:
                epoch, position = divmod(progress.step, run.steps_per_epoch)
                if position == 0 and progress.step > progress.closed_step:
                    yield from self._close_epoch(epoch - 1)
                if progress.step >= self.end_step or should_end(run):
                    break
                yield from self._train_epoch(epoch, position)
        except Stopped as error:
            self._update_elapsed()
            ending = error
        self.meter.pause()
        if self.saves:
            run.activity.begin(f"saving step {progress.step:,}")
            try:
                yield from self.saver.finish()
            except WorkspaceError as error:
                ending = error
        if run.val_loader is not None:
            details = write_evaluation(run, self.best_predictions, run.val_loader)
            self.results["evaluation"], problem = details
            if problem:
                yield run.record("warning", message=problem)
        # The results are reported even where the last step cannot be saved.
        yield self._end_record()
        if ending is not None:
            raise ending

    def _train_epoch(self, epoch: int, position: int) -> Iterator[Record]:
        """Train from step ``position`` of ``epoch`` to its end, or to the run's last step."""
        run, progress = self.run, self.run.progress
        run.parts.model.train()
        activity = run.activity
        activity.step = progress.step
        first = "compiling" if run.config.model.compile else "first step"
        activity.begin("training" if self.meter.total.steps else first, trains=True)
        batches = run.train_loader.epoch(epoch, position)
        self.meter.begin()
        for epoch_step in range(position + 1, run.steps_per_epoch + 1):
            metrics = train_step(run, batches, progress.step, epoch, self.monitor)
            self.meter.step(metrics.num_images, metrics.data_wait_s)
            progress.step += 1
            activity.step = progress.step
            activity.data_wait_s += metrics.data_wait_s
            if activity.task.name == first:
                activity.begin("training", trains=True)
            if activity.watched:
                self._provide_loss(metrics.loss)
            self._update_elapsed()
            self.loss_sum += metrics.loss
            self.epoch_loss_sum += metrics.loss
            self.recorded_steps += 1
            self.epoch_steps += 1
            self._check_finite(all_steps=False)
            step, ends_epoch = progress.step, epoch_step == run.steps_per_epoch
            is_due = step % run.config.run.log_every_steps == 0 or step == self.first_step
            if is_due or ends_epoch or step >= self.end_step:
                yield from self._undecodable_images(epoch)
                yield self._step_record(epoch, epoch_step, metrics.lr)
            yield from self.saver.poll()
            if self.stop.requested():
                self._check_finite()
                raise self.stop.stopped()
            if self.saves and self._save_is_due() and not ends_epoch:
                self._check_finite()
                self.meter.pause()
                yield from self._save()
                activity.begin("training", trains=True)
                self.meter.begin()
            if step >= self.end_step:
                return

    def _provide_loss(self, loss: torch.Tensor) -> None:
        """Pass the loss of about one step per second to the view without waiting for the device."""
        now_s = time.perf_counter()
        if self.loss_copy is None and now_s - self.loss_copied_at_s >= 1.0:
            self.loss_copy, self.loss_copied_at_s = Readback(loss), now_s
        if self.loss_copy is not None and self.loss_copy.ready():
            self.run.activity.loss = float(self.loss_copy.wait())
            self.loss_copy = None

    def _save_is_due(self) -> bool:
        due = self.save_every.due(self.run.progress.step, time.perf_counter() - self.last_save)
        # Clocks differ between ranks, so rank 0 decides about minutes.
        if self.save_every.unit == "minutes":
            return bool(agree_max(int(due and self.run.world.rank == 0)))
        return due

    def _save(self) -> Iterator[Record]:
        self.run.activity.begin(f"saving step {self.run.progress.step:,}")
        yield from self.saver.begin()
        self.last_save = time.perf_counter()

    def _undecodable_images(self, epoch: int) -> Iterator[Record]:
        """Name each train image that could not be decoded once, whichever rank read it.

        Raises:
            DataError: over all ranks, more of them than ``data.error_budget`` allows.
        """
        known = self.run.train_loader.undecodable
        new = {name: reason for name, reason in known.items() if name not in self.undecodable}
        if not agree_max(len(new)):
            return
        found: dict[str, str] = {}
        for text in gather_text(json.dumps(new)):
            found.update(json.loads(text))
        for name, reason in found.items():
            self.undecodable.add(name)
            yield self.run.record("warning", epoch, message=reason)
        known.note(found)

    def _close_epoch(self, epoch: int) -> Iterator[Record]:
        """Record, validate and save after the last step of ``epoch``."""
        run = self.run
        yield from self._epoch_record(epoch)
        if run.val_loader is not None:
            yield from self._validate(epoch, run.val_loader)
        else:
            run.progress.closed_step = run.progress.step
        is_best = run.progress.best_step == run.progress.step
        if self.saves and (self.save_every.due_epoch(epoch + 1) or is_best):
            yield from self._save()

    def _validate(self, epoch: int, loader: Loader) -> Iterator[Record]:
        run = self.run
        broadcast_module_state(run.parts.model)
        found, predictions = evaluate_all(run, loader, self.stop)
        # The moving average is the model that gets published, so it decides what is best.
        deciding = found.get("validation_ema", found["validation"])
        self._update_elapsed()
        is_best = run.progress.note_validation(deciding.top1)
        if is_best:
            self.best_predictions = predictions.gather()
        for kind, result in found.items():
            self.validation_time_s += result.time_s
            self.results[kind] = figures(result)
            yield validation_record(run, kind, epoch, result, is_best and result is deciding)

    def _update_elapsed(self) -> None:
        elapsed_s = time.perf_counter() - self.started
        self.run.progress.elapsed_s = self.elapsed_before_s + elapsed_s

    def _check_finite(self, all_steps: bool = True) -> None:
        """Raise DivergedError, on every rank, if a checked step diverged.

        all_steps: wait for the newest step too; required before it is saved or recorded.
        """
        diverged = self.monitor.divergence(all_steps)
        self.run.progress.skipped = self.monitor.skipped
        if diverged is not None:
            raise report_divergence(self.run, diverged)

    def _step_record(self, epoch: int, epoch_step: int, lr: float) -> Record:
        run = self.run
        sums = self.meter.flush()
        loss = float(all_reduce_sum(self.loss_sum.clone()))
        self._check_finite()
        scale = run.parts.amp.scale()
        record = run.record(
            "step",
            epoch,
            loss=loss / (self.recorded_steps * run.world.world_size),
            lr=lr,
            images_per_s=sums.images_per_s,
            data_wait_s=sums.data_wait_s / sums.steps if sums.steps else None,
            step_time_s=sums.time_s / sums.steps if sums.steps else None,
            epoch_step=epoch_step,
            steps_per_epoch=run.steps_per_epoch,
            total_steps=self.end_step,
            memory_bytes=run.accelerator.peak_memory_bytes(),
            loss_scale=float(scale) if scale is not None else None,
            skipped_steps=run.progress.skipped,
        )
        self.loss_sum.zero_()
        self.recorded_steps = 0
        return record

    def _epoch_record(self, epoch: int) -> Iterator[Record]:
        run, sums = self.run, self.meter.end_epoch()
        if not self.epoch_steps:  # resumed before the epoch was closed
            return
        loss = float(all_reduce_sum(self.epoch_loss_sum.clone()))
        yield run.record(
            "epoch",
            epoch,
            images=sums.images,
            time_s=sums.time_s,
            images_per_s=sums.images_per_s,
            compute_images_per_s=sums.compute_images_per_s,
            loss=loss / (self.epoch_steps * run.world.world_size),
            lr=run.schedule.lr(run.progress.step - 1),
            steps=self.epoch_steps,
            data_wait_s=sums.data_wait_s,
            undecodable=len(self.undecodable),
        )
        self.epoch_loss_sum.zero_()
        self.epoch_steps = 0

    def _top1_at(self, top1: float | None, step: int | None) -> dict[str, Any] | None:
        """Return a validation of ``results``; epoch counts from 1."""
        if top1 is None or step is None:
            return None
        return {"top1": top1, "epoch": step // self.run.steps_per_epoch, "step": step}

    def _end_record(self) -> Record:
        run, meter = self.run, self.meter
        meter.flush()
        # Epochs since the run's first start, as published figures count them.
        epochs = run.progress.step / run.steps_per_epoch
        results = {
            "train": meter.results(run.world.world_size, epochs) if meter.total.steps else None,
            **self.results,
            "validation_set": validation_set(run.val_loader) if run.val_loader else None,
            "best": self._top1_at(run.progress.best_top1, run.progress.best_step),
            "last": self._top1_at(run.progress.last_top1, run.progress.last_step),
            "target": target_result(run),
            "starts": run.progress.starts,
            "time_s": time_results(
                time.perf_counter() - self.started,
                meter.total.time_s,
                self.validation_time_s if run.config.run.validate else None,
                meter.first_step_s,
            ),
        }
        return run.record("end", results=results, best_top1=run.progress.best_top1)
