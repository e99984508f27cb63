"""Work in a thread of its own, whose end and error are asked for later.

Saving while training goes on: what is agreed on in the step loop, what is written beside it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from image_classification.core.errors import DivergedError, UserError, WorkspaceError
from image_classification.core.files import explained
from image_classification.core.types import Record
from image_classification.distributed.host_collectives import AnyRank, broadcast_text
from image_classification.distributed.world import agree_max, broadcast_module_state
from image_classification.engine.build import Run
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints import run_state as saving

T = TypeVar("T")


class Job(Generic[T]):
    """One call of a function in a thread, begun at once.

    The thread is no daemon: an interpreter that exits waits for it, so that what is being written
    is written. After the call only its result or its error (with the frames it came from) is kept.
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._outcome: tuple[T] | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name)
        self._thread.start()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._outcome = (work(),)
        except BaseException as error:
            self._outcome = error

    @property
    def done(self) -> bool:
        """Whether the function has returned or raised; never waits."""
        return self._outcome is not None

    def wait(self) -> None:
        """Wait for the end, whatever it is."""
        self._thread.join()

    def result(self) -> T:
        """Wait for the function; return what it returned or raise what it raised."""
        self.wait()
        if isinstance(self._outcome, tuple):
            return self._outcome[0]
        assert self._outcome is not None
        raise self._outcome


@dataclass(frozen=True)
class _Written:
    """How a write ended: error is None and the rest is set, or the other way round."""

    error: str | None = None
    path: str | None = None
    bytes: int | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class _Order:
    """What rank 0's thread is to do with a captured step."""

    folder: Path
    prefix: str
    keep: int
    step: int
    best_top1: float | None
    started_s: float


@dataclass
class _UnderWay:
    """The save being written; job is rank 0's alone."""

    step: int
    epoch: int
    is_best: bool
    stall_s: float
    waited_s: float
    job: Job[_Written] | None
    done: AnyRank = field(default_factory=AnyRank)


class Saver:
    """Saves a run's steps, at most one at a time. Every rank makes the same calls.

    `begin` copies the state on the device and returns; a thread of rank 0 brings the copy to the
    host, writes it, notes the best and rotates, in this order. `poll`, called at each step
    boundary, yields the ``checkpoint`` record once all of that is done (in a world of several
    ranks a boundary later, since the ranks agree on it without waiting). `best.json` needs no
    wait: it is written after its checkpoint by the same thread, and before any later one.

    A save that fails raises WorkspaceError on every rank, or with ``run.on_save_error`` ``warn``
    yields a warning, but for the one that `finish` needs.

    saved_step: the newest step known to be whole on the disk; -1 for none.
    """

    def __init__(self, run: Run) -> None:
        self.saved_step = -1
        self._run = run
        self._tolerant = run.config.run.on_save_error == "warn"
        self._under_way: _UnderWay | None = None
        self._told_unstaged = False

    def begin(self) -> Iterator[Record]:
        """Begin to save the present step, once the save under way is complete.

        Yields the record of the save that was under way.

        Raises:
            WorkspaceError: that one failed. DivergedError: the weights are not finite; nothing
                is written.
        """
        waiting_since = time.perf_counter()
        earlier = self._settle() if self._under_way is not None else None
        waited_s = time.perf_counter() - waiting_since if earlier is not None else 0.0
        if earlier is not None:
            yield earlier
        run, started_s = self._run, time.perf_counter()
        parts, progress = run.parts, run.progress
        assert parts is not None
        broadcast_module_state(parts.model)
        if agree_max(int(not _finite(parts.model.state_dict()))):
            raise DivergedError(f"weights are not finite at step {progress.step}", progress.step)
        best_top1 = progress.best_top1 if progress.best_step == progress.step else None
        job, staged = None, True
        if run.world.rank == 0:
            control = run.config.run
            order = _Order(
                folder=run.checkpoints,
                prefix=control.checkpoint_name,
                keep=control.keep_checkpoints,
                step=progress.step,
                best_top1=best_top1,
                started_s=started_s - waited_s,
            )
            captured = saving.capture(run)
            staged = captured.staged
            job = Job(partial(_write, order, captured), "checkpoint")
        self._under_way = _UnderWay(
            step=progress.step,
            epoch=_epoch(run),
            is_best=best_top1 is not None,
            stall_s=waited_s + time.perf_counter() - started_s,
            waited_s=waited_s,
            job=job,
        )
        if not staged and not self._told_unstaged:
            self._told_unstaged = True
            message = "no device memory for a second copy of the weights: training waits for saves"
            yield Record("warning", progress.step, _epoch(run), {"message": message})

    def poll(self) -> Iterator[Record]:
        """At a step boundary: yield the record of a save that has meanwhile ended.

        Raises:
            WorkspaceError: it failed.
        """
        save = self._under_way
        if save is not None and save.done(save.job is not None and save.job.done):
            yield self._settle()

    def finish(self) -> Iterator[Record]:
        """Have the present step on the disk, whole, before going on; yield what is due.

        Raises:
            WorkspaceError: it cannot be saved, whatever ``run.on_save_error`` says.
            DivergedError: as `begin`.
        """
        if self._under_way is not None:
            yield self._settle(standing=True)
        if self.saved_step != self._run.progress.step:
            yield from self.begin()
            yield self._settle(standing=True, needed=True)

    def settle(self) -> Iterator[Record]:
        """Wait for the save under way, when the run ends for a reason of its own; never raises."""
        if self._under_way is not None:
            yield self._settle(standing=True, tolerant=True)

    def close(self) -> None:
        """Let the save under way be written to its end, and say nothing of it."""
        save, self._under_way = self._under_way, None
        if save is not None:
            if save.job is not None:
                save.job.wait()
            save.done.finish()

    def _settle(
        self, *, standing: bool = False, needed: bool = False, tolerant: bool = False
    ) -> Record:
        """Wait for the save under way and return its record; the same on every rank.

        standing: the loop stands still for this very save. needed: its failure is an error in any
        case. tolerant: in no case.
        """
        save, self._under_way = self._under_way, None
        assert save is not None
        since = time.perf_counter()
        save.done.finish()
        written = _shared(save.job)
        stall_s = save.stall_s + (time.perf_counter() - since if standing else 0.0)
        if written.error is not None:
            if needed or not (self._tolerant or tolerant):
                raise WorkspaceError(written.error)
            message = f"step {save.step} is not saved: {written.error}"
            return Record("warning", save.step, save.epoch, {"message": message})
        self.saved_step = save.step
        values: dict[str, Any] = {
            "is_best": save.is_best,
            "path": written.path,
            "bytes": written.bytes,
            "time_s": written.time_s,
            "stall_s": stall_s,
            "waited_s": save.waited_s,
        }
        return Record("checkpoint", save.step, save.epoch, values)


def _shared(job: Job[_Written] | None) -> _Written:
    """Return rank 0's outcome on every rank, waiting for it.

    Raises:
        RuntimeError: the write met a bug, whose own error rank 0 raises.
    """
    text, bug = "", None
    if job is not None:
        try:
            text = json.dumps(asdict(job.result()))
        except Exception as error:
            bug = error
    text = broadcast_text(text)
    if bug is not None:
        raise bug
    if not text:
        raise RuntimeError("rank 0 could not save; see its error")
    return _Written(**json.loads(text))


def _write(order: _Order, captured: saving.Capture) -> _Written:
    try:
        return _write_in_order(order, captured)
    except UserError as error:
        # As text: the error's frames would keep the captured tensors alive.
        return _Written(error=f"{error.message}; {_what_is_left(order.folder)}")


def _write_in_order(order: _Order, captured: saving.Capture) -> _Written:
    folder = order.folder
    saved = checkpoint.save(folder, order.step, captured.on_host(), prefix=order.prefix)
    with explained(folder, "tidy up"):
        if order.best_top1 is not None:
            checkpoint.note_best(folder, saved, order.best_top1)
        best = checkpoint.best_step(folder)
        checkpoint.rotate(folder, order.keep, () if best is None else (best,))
        num_bytes = sum(f.stat().st_size for f in saved.path.iterdir())
    return _Written(
        path=str(saved.path),
        bytes=num_bytes,
        time_s=time.perf_counter() - order.started_s,
    )


def _what_is_left(folder: Path) -> str:
    try:
        left = checkpoint.listed(folder)
    except OSError:
        return "earlier checkpoints were not touched"
    return f"{left[-1].path} is kept" if left else "no checkpoint had been saved"


def _finite(tensors: dict[str, torch.Tensor]) -> bool:
    # One answer is read from the device, not one for each tensor.
    verdicts = [t.isfinite().all() for t in tensors.values() if t.is_floating_point()]
    return bool(torch.stack(verdicts).all())


def _epoch(run: Run) -> int:
    steps = run.train_loader.steps_per_epoch if run.train_loader else 0
    return max(0, (run.progress.step - 1) // steps) if steps else 0
