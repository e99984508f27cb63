"""Save checkpoints in a background thread while training continues."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from image_classification.core.errors import DivergedError, UserError, WorkspaceError
from image_classification.core.files import explained
from image_classification.core.types import Record
from image_classification.data.loaders import DECODING
from image_classification.devices.async_readback import HostCopy
from image_classification.distributed.collectives import (
    AnyRank,
    agree_max,
    broadcast_module_state,
    broadcast_text,
)
from image_classification.engine.checkpoints import files
from image_classification.engine.checkpoints.restore import DataSet, bound_settings
from image_classification.engine.runs import TrainingRun
from image_classification.models import Preprocessing
from image_classification.models.weights import model_metadata


@dataclass(frozen=True)
class PendingSnapshot:
    """Copies of a run's state, still on the device; training may go on at once."""

    model: HostCopy
    state: HostCopy
    model_header: Mapping[str, str]
    meta: Mapping[str, Any]

    @property
    def staged(self) -> bool:
        """Whether the device had memory for the copies; if not, training waited for them."""
        return self.model.staged and self.state.staged

    def on_host(self) -> files.Snapshot:
        """Wait for the copies and return them; from any thread, once."""
        return files.Snapshot(self.model.take(), self.model_header, self.state.take(), self.meta)


def capture(run: TrainingRun) -> PendingSnapshot:
    """Copy everything that a checkpoint of the current step holds."""
    parts, config = run.parts, run.config
    state, numbers = optimizer_state(parts.model, parts.optimizer)
    if parts.ema is not None:
        state |= {f"ema.{name}": t for name, t in parts.ema.state_dict().items()}
    meta = {
        # A shallow copy: `starts` grows only when a run starts.
        "progress": dict(vars(run.progress)),
        "data_set": vars(DataSet.of(run)),
        "steps_per_epoch": run.steps_per_epoch,
        "optimizer_numbers": numbers,
        "scaler": parts.amp.state_dict(),
        "config": bound_settings(config),
        "names": vars(config.names),
        "world_size": run.world.world_size,
    }
    header = model_metadata(
        config.model.name,
        config.model.num_classes,
        se_reduction=config.model.se_reduction,
        preprocessing=Preprocessing.of(config.data),
        decoding=DECODING[config.data.backend],
        classes=run.classes,
    )
    return PendingSnapshot(HostCopy(parts.model.state_dict()), HostCopy(state), header, meta)


def optimizer_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the optimizer's state by parameter name: tensors and numbers."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optim.{name}.{key}"] = value
            elif value is not None:
                numbers[f"optim.{name}.{key}"] = value
    return tensors, numbers


@dataclass
class PendingSave:
    """The save being written.

    written: on rank 0 only; its result has ``error``, or ``path``, ``bytes`` and ``time_s``.
    done: asks all ranks without waiting.
    """

    step: int
    epoch: int
    is_best: bool
    stall_s: float
    waited_s: float
    written: Future[dict[str, Any]] | None
    done: AnyRank = field(default_factory=AnyRank)


class CheckpointSaver:
    """Saves a run's steps, at most one at a time. Every rank makes the same calls.

    `begin` copies the state on the device and returns; a thread of rank 0 transfers the copy to
    the host, writes it, updates ``best.json`` and rotates, in this order. `poll`, called at each
    step boundary, yields the ``checkpoint`` record once all of that is done (with several ranks
    one boundary later, since they agree on it without waiting).

    A failed save raises WorkspaceError on every rank. With ``run.on_save_error`` ``warn`` it yields
    a warning instead, except for the save that `finish` requires.

    saved_step: the newest step known to be complete on the disk; -1 for none.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.saved_step = -1
        self._run = run
        self._tolerant = run.config.run.on_save_error == "warn"
        self._pending: PendingSave | None = None
        self._warned_unstaged = False

    def begin(self) -> Iterator[Record]:
        """Wait for the pending save, yield its record, and start saving the current step.

        Raises:
            WorkspaceError: the pending save failed. DivergedError: the weights are not finite;
                nothing is written.
        """
        waited_s = 0.0
        if self._pending is not None:
            wait_started = time.perf_counter()
            record = self._complete(self._pending)
            waited_s = time.perf_counter() - wait_started
            yield record
        run, started = self._run, time.perf_counter()
        model, progress = run.parts.model, run.progress
        epoch = max(0, (progress.step - 1) // run.steps_per_epoch)
        broadcast_module_state(model)
        if agree_max(int(not _all_finite(model.state_dict()))):
            raise DivergedError(f"weights are not finite at step {progress.step}", progress.step)
        best_top1 = progress.best_top1 if progress.best_step == progress.step else None
        written, staged = None, True
        run.activity.saving_step = progress.step
        if run.world.rank == 0:
            snapshot = capture(run)
            staged = snapshot.staged
            # The interpreter waits for this thread at exit, so a write is always completed.
            executor = ThreadPoolExecutor(1, "checkpoint")
            written = executor.submit(
                _write, run, progress.step, best_top1, started - waited_s, snapshot
            )
            executor.shutdown(wait=False)
        self._pending = PendingSave(
            step=progress.step,
            epoch=epoch,
            is_best=best_top1 is not None,
            stall_s=waited_s + time.perf_counter() - started,
            waited_s=waited_s,
            written=written,
        )
        if not staged and not self._warned_unstaged:
            self._warned_unstaged = True
            message = "no device memory for a second copy of the weights: training waits for saves"
            yield run.record("warning", epoch, message=message)

    def poll(self) -> Iterator[Record]:
        """Yield the record of the pending save if it has ended; called at a step boundary."""
        save = self._pending
        if save is not None and save.done(save.written is not None and save.written.done()):
            yield self._complete(save)

    def finish(self) -> Iterator[Record]:
        """Wait until the current step is complete on the disk; yield the records of its saves.

        Raises:
            WorkspaceError: it cannot be saved, whatever ``run.on_save_error`` says.
            DivergedError: as `begin`.
        """
        if self._pending is not None:
            yield self._complete(self._pending, stalls=True)
        if self.saved_step != self._run.progress.step:
            yield from self.begin()
            if self._pending is not None:
                yield self._complete(self._pending, stalls=True, tolerant=False)

    def wait_for_pending(self) -> Iterator[Record]:
        """Wait for the pending save when the run ends with another error; never raises."""
        if self._pending is not None:
            yield self._complete(self._pending, stalls=True, tolerant=True)

    def close(self) -> None:
        """Wait for the pending save without reporting it."""
        save, self._pending = self._pending, None
        if save is not None:
            if save.written is not None:
                save.written.exception()
            save.done.finish()

    def _complete(
        self, save: PendingSave, *, stalls: bool = False, tolerant: bool | None = None
    ) -> Record:
        """Wait for the pending save and return its record, the same on every rank.

        stalls: count the wait as a stall of this save. tolerant: a failure is a warning; None: as
        ``run.on_save_error`` says.
        """
        self._pending = None
        self._run.activity.saving_step = None
        wait_started = time.perf_counter()
        save.done.finish()
        result = _share(save.written)
        stall_s = save.stall_s + (time.perf_counter() - wait_started if stalls else 0.0)
        if "error" in result:
            if not (self._tolerant if tolerant is None else tolerant):
                raise WorkspaceError(result["error"])
            message = f"step {save.step} is not saved: {result['error']}"
            return Record("warning", save.step, save.epoch, {"message": message})
        self.saved_step = save.step
        values = {"is_best": save.is_best, **result, "stall_s": stall_s, "waited_s": save.waited_s}
        return Record("checkpoint", save.step, save.epoch, values)


def _share(written: Future[dict[str, Any]] | None) -> dict[str, Any]:
    """Wait for rank 0's write and return its result on every rank; raise a bug of the write."""
    text, bug = "", None
    if written is not None:
        bug = written.exception()
        if bug is None:
            text = json.dumps(written.result())
    text = broadcast_text(text)
    if bug is not None:
        raise bug
    if not text:
        raise RuntimeError("rank 0 could not save; see its error")
    result: dict[str, Any] = json.loads(text)
    return result


def _write(
    run: TrainingRun, step: int, best_top1: float | None, started: float, snapshot: PendingSnapshot
) -> dict[str, Any]:
    """Write a checkpoint, update ``best.json`` and rotate. Runs in a thread of rank 0."""
    folder, control = run.checkpoints, run.config.run
    try:
        saved = files.save(folder, step, snapshot.on_host(), prefix=control.checkpoint_name)
        with explained(folder, "clean up"):
            if best_top1 is not None:
                files.note_best(folder, saved, best_top1)
            best = files.best_step(folder)
            # A damaged newer one, from which the run did not continue, counts as the newest.
            files.rotate(folder, control.keep_checkpoints, {step, step if best is None else best})
            num_bytes = sum(f.stat().st_size for f in saved.path.iterdir())
    except UserError as error:
        # As text and without frames, which would keep the copied tensors alive.
        for each in (error, error.__cause__):
            if each is not None:
                traceback.clear_frames(each.__traceback__)
        return {"error": f"{error.message}; {files.describe_newest(folder)}"}
    time_s = time.perf_counter() - started
    return {"path": str(saved.path), "bytes": num_bytes, "time_s": time_s}


def _all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    # One result is read from the device, not one per tensor.
    finite = [t.isfinite().all() for t in tensors.values() if t.is_floating_point()]
    return bool(torch.stack(finite).all())
