"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, each an optional extra.

A tracker runs in a thread of its own, so that a slow disk or network holds up no step, and once
it has failed it costs the run a warning and nothing else.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.trackers import mlflow as tracker_mlflow
from image_classification.reporting.trackers import tensorboard as tracker_tensorboard
from image_classification.reporting.trackers import wandb as tracker_wandb
from image_classification.reporting.trackers.protocol import TrackedRun, Tracker

FOLDER = "trackers"
"""Below the run's folder: what the trackers write, and what continues their runs."""

_GROUPS = {
    "step": "train",
    "epoch": "epoch",
    "validation": "validation",
    "validation_ema": "validation_ema",
    "checkpoint": "checkpoint",
    "telemetry": "telemetry",
    "inference": "inference",
    "data": "data",
}
# Places on an axis and what never changes: no curves.
_NO_CURVE = frozenset({"batch", "epoch_step", "steps_per_epoch", "total_steps", "unix_time_s"})


Opener = Callable[[TrackedRun], Tracker]

_OPENERS: dict[str, Opener] = {
    "tensorboard": tracker_tensorboard.open_tracker,
    "wandb": tracker_wandb.open_tracker,
    "mlflow": tracker_mlflow.open_tracker,
}
_LOADERS: dict[str, Callable[[], Any]] = {
    "tensorboard": tracker_tensorboard.load,
    "wandb": tracker_wandb.load,
    "mlflow": tracker_mlflow.load,
}


def check_trackers(names: Iterable[str]) -> None:
    """See that the packages of the trackers asked for can be imported.

    Raises:
        ConfigError: one cannot; the message names the extra that brings it.
    """
    for name in dict.fromkeys(names):
        _check(name)


def _check(name: str) -> None:
    try:
        _LOADERS[name]()
    # A package at odds with another one raises whatever it likes.
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(name)
        what = "is not installed" if absent else f"cannot be imported ({_one_line(error)})"
        raise ConfigError(
            f"--track {name}: {name} {what}; "
            f"pip install 'image-classification[{name}]', or leave {name} out"
        ) from error


def open_trackers(
    names: Iterable[str],
    *,
    workspace: Path,
    parameters: Mapping[str, Any],
    resumed: bool,
    warn: Callable[[str], None],
) -> list[TrackerSink]:
    """Open the trackers called ``names`` for the run in ``workspace``.

    warn: says what a tracker's failure cost; called on the thread that writes or closes.

    Raises:
        WorkspaceError: a new run's tracker cannot be opened. A resumed run goes on without it.
    """
    sinks: list[TrackerSink] = []
    for name in dict.fromkeys(names):
        folder = workspace / FOLDER / name
        run = TrackedRun(workspace.resolve().name, folder, parameters, resumed)
        sink = TrackerSink(name, _OPENERS[name], run, warn)
        if sink.failure is not None and not resumed:
            for opened in sinks:
                opened.close()
            raise WorkspaceError(
                f"--track {name}: {sink.failure}; mend that, or leave {name} out of --track"
            )
        sinks.append(sink)
    return sinks


def curve_points(record: Record) -> tuple[dict[str, float], int]:
    """Return what ``record`` adds to curves, and at which step (inference: which batch).

    The names are ``train/loss``, ``validation/top1``, ``telemetry/power_w`` and the like, the
    value's name being the record's. What was not measured, or is not finite, is left out.
    """
    values = record.values
    if record.kind == "end":
        return _numbers("results", values.get("results") or {}), record.step
    if record.kind not in _GROUPS:
        return {}, record.step
    kept = {name: value for name, value in values.items() if name not in _NO_CURVE}
    step = values["batch"] if record.kind == "inference" else record.step
    return _numbers(_GROUPS[record.kind], kept), step


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        elif math.isfinite(value):
            found[f"{prefix}/{name}"] = float(value)
    return found


class TrackerSink:
    """Hands records to one tracker on a thread of its own; never raises.

    failure: why it no longer records, None while it does.
    """

    def __init__(
        self,
        name: str,
        opener: Opener,
        run: TrackedRun,
        warn: Callable[[str], None],
        *,
        wait_s: float = 60.0,
        max_waiting: int = 10_000,
    ) -> None:
        """Open the tracker; ``failure`` says afterwards whether that worked.

        wait_s: longest time to wait for opening and for closing. max_waiting: records that may
        wait for the tracker before it counts as failed.
        """
        self._name = name
        self._warn = warn
        self._wait_s = wait_s
        self._records: queue.Queue[Record | None] = queue.Queue(max_waiting)
        self._opened = threading.Event()
        self._told = self._closed = False
        self.failure: str | None = None
        # A daemon: one that hangs must not keep the process.
        self._thread = threading.Thread(
            target=self._run, args=(opener, run), name=f"track-{name}", daemon=True
        )
        self._thread.start()
        if not self._opened.wait(wait_s):
            self.failure = f"not open after {wait_s:g} s"

    def write(self, record: Record) -> None:
        """Queue the record; the first write after a failure warns."""
        if self._closed:
            return
        if self.failure is None:
            try:
                self._records.put_nowait(record)
            except queue.Full:
                self.failure = f"{self._records.maxsize:,} records are waiting for it"
        self._tell()

    def close(self) -> None:
        """Wait for what is queued, at most ``wait_s``; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self.failure is None:
            try:
                self._records.put(None, timeout=self._wait_s)
            except queue.Full:
                self.failure = f"not done after {self._wait_s:g} s"
            else:
                self._thread.join(self._wait_s)
                if self._thread.is_alive():
                    self.failure = f"not done after {self._wait_s:g} s"
        self._tell()

    def _tell(self) -> None:
        if self.failure is not None and not self._told:
            self._told = True
            self._warn(f"{self._name} records no more: {self.failure}; the run goes on without it")

    def _run(self, opener: Opener, run: TrackedRun) -> None:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            tracker = opener(run)
            self._opened.set()
            self._feed(tracker)
        except Exception as error:
            self.failure = _one_line(error)
            self._opened.set()

    def _feed(self, tracker: Tracker) -> None:
        finished = False
        while (record := self._records.get()) is not None:
            if self.failure is not None:
                return
            if record.kind == "start":
                tracker.start(record.values)
            figures, step = curve_points(record)
            if figures:
                tracker.log(figures, step)
            finished = finished or record.kind == "end"
        tracker.close(finished=finished)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
