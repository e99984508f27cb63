"""Save checkpoints while training goes on: agreed in the step loop, written by a thread."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from image_classification.core.errors import DivergedError, UserError, WorkspaceError
from image_classification.core.files import explained
from image_classification.core.types import Record
from image_classification.distributed.host_collectives import AnyRank, broadcast_text
from image_classification.distributed.world import agree_max, broadcast_module_state
from image_classification.engine.checkpoints import files, run_state
from image_classification.engine.runs import TrainingRun


@dataclass(frozen=True)
class WriteResult:
    """How a write ended: either ``error`` is set, or all the others are."""

    error: str | None = None
    path: str | None = None
    bytes: int | None = None
    time_s: float | None = None


@dataclass
class PendingSave:
    """The save being written. written: on rank 0 only; done: asks all ranks without waiting."""

    step: int
    epoch: int
    is_best: bool
    stall_s: float
    waited_s: float
    written: Future[WriteResult] | None
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
        """Start saving the current step, after the pending save is complete.

        Yields the record of the save that was pending.

        Raises:
            WorkspaceError: that one failed. DivergedError: the weights are not finite; nothing
                is written.
        """
        waited_s = 0.0
        if self._pending is not None:
            wait_started = time.perf_counter()
            record = self._complete(self._pending)
            waited_s = time.perf_counter() - wait_started
            yield record
        run, started = self._run, time.perf_counter()
        model, progress = run.parts.model, run.progress
        broadcast_module_state(model)
        if agree_max(int(not _all_finite(model.state_dict()))):
            raise DivergedError(f"weights are not finite at step {progress.step}", progress.step)
        best_top1 = progress.best_top1 if progress.best_step == progress.step else None
        written, staged = None, True
        if run.world.rank == 0:
            snapshot = run_state.capture(run)
            staged = snapshot.staged
            # The interpreter waits for this thread at exit, so a write is always completed.
            executor = ThreadPoolExecutor(1, "checkpoint")
            written = executor.submit(
                _write, run, progress.step, best_top1, started - waited_s, snapshot
            )
            executor.shutdown(wait=False)
        self._pending = PendingSave(
            step=progress.step,
            epoch=run.epoch_of_last_step(),
            is_best=best_top1 is not None,
            stall_s=waited_s + time.perf_counter() - started,
            waited_s=waited_s,
            written=written,
        )
        if not staged and not self._warned_unstaged:
            self._warned_unstaged = True
            message = "no device memory for a second copy of the weights: training waits for saves"
            yield run.record("warning", run.epoch_of_last_step(), message=message)

    def poll(self) -> Iterator[Record]:
        """Yield the record of the pending save if it has ended; called at a step boundary.

        Raises:
            WorkspaceError: it failed.
        """
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
                yield self._complete(self._pending, stalls=True, required=True)

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
        self,
        save: PendingSave,
        *,
        stalls: bool = False,
        required: bool = False,
        tolerant: bool = False,
    ) -> Record:
        """Wait for the pending save and return its record, the same on every rank.

        stalls: training waits for this save. required: its failure is always an error. tolerant:
        its failure is never an error.
        """
        self._pending = None
        wait_started = time.perf_counter()
        save.done.finish()
        result = _share(save.written)
        stall_s = save.stall_s + (time.perf_counter() - wait_started if stalls else 0.0)
        if result.error is not None:
            if required or not (self._tolerant or tolerant):
                raise WorkspaceError(result.error)
            message = f"step {save.step} is not saved: {result.error}"
            return Record("warning", save.step, save.epoch, {"message": message})
        self.saved_step = save.step
        values = {
            "is_best": save.is_best,
            "path": result.path,
            "bytes": result.bytes,
            "time_s": result.time_s,
            "stall_s": stall_s,
            "waited_s": save.waited_s,
        }
        return Record("checkpoint", save.step, save.epoch, values)


def _share(written: Future[WriteResult] | None) -> WriteResult:
    """Wait for rank 0's write and return its result on every rank.

    Raises:
        RuntimeError: a bug in the write, whose own error rank 0 raises.
    """
    text, bug = "", None
    if written is not None:
        bug = written.exception()
        if bug is None:
            text = json.dumps(asdict(written.result()))
    text = broadcast_text(text)
    if bug is not None:
        raise bug
    if not text:
        raise RuntimeError("rank 0 could not save; see its error")
    return WriteResult(**json.loads(text))


def _write(
    run: TrainingRun,
    step: int,
    best_top1: float | None,
    started: float,
    snapshot: run_state.PendingSnapshot,
) -> WriteResult:
    """Write a checkpoint, update ``best.json`` and rotate. Runs in a thread of rank 0."""
    folder = run.checkpoints
    control = run.config.run
    try:
        saved = files.save(folder, step, snapshot.on_host(), prefix=control.checkpoint_name)
        with explained(folder, "tidy up"):
            if best_top1 is not None:
                files.note_best(folder, saved, best_top1)
            best = files.best_step(folder)
            files.rotate(folder, control.keep_checkpoints, () if best is None else (best,))
            num_bytes = sum(f.stat().st_size for f in saved.path.iterdir())
    except UserError as error:
        # As text: the error's frames would keep the copied tensors alive.
        return WriteResult(error=f"{error.message}; {_kept(folder)}")
    return WriteResult(path=str(saved.path), bytes=num_bytes, time_s=time.perf_counter() - started)


def _kept(folder: Path) -> str:
    try:
        saved = files.listed(folder)
    except OSError:
        return "earlier checkpoints were not touched"
    return f"{saved[-1].path} is kept" if saved else "no checkpoint had been saved"


def _all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    # One result is read from the device, not one per tensor.
    finite = [t.isfinite().all() for t in tensors.values() if t.is_floating_point()]
    return bool(torch.stack(finite).all())
