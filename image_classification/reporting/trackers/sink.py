"""Send records to experiment trackers: TensorBoard, Weights & Biases and MLflow.

Each tracker runs in its own thread, so a slow disk or network delays no training step. If a
tracker fails, the run warns once and continues.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.trackers.writers import TRACKERS, TrackedRun

# Values without a curve: positions on the x axis, and constants.
_NO_CURVE = frozenset({"batch", "epoch_step", "steps_per_epoch", "total_steps", "unix_time_s"})


def check_trackers(names: Iterable[str]) -> None:
    """Check that the trackers' packages can be imported.

    Raises:
        ConfigError: one cannot; the message names the extra to install.
    """
    for name in dict.fromkeys(names):
        _check(name)


def _check(name: str) -> None:
    try:
        TRACKERS[name].load()
    # Incompatible packages raise any exception.
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(name)
        what = "is not installed" if missing else f"cannot be imported ({_one_line(error)})"
        raise ConfigError(
            f"--track {name}: {name} {what}; "
            f"pip install 'imagenet-by-name[{name}]', or leave {name} out"
        ) from error


def open_trackers(
    names: Iterable[str],
    *,
    workspace: Path,
    parameters: Mapping[str, Any],
    resumed: bool,
    warn: Callable[[str], None],
) -> list[TrackerSink]:
    """Open the trackers for the run in ``workspace``; their files go to its ``trackers/``.

    warn: called once for a tracker that fails, in the thread that writes or closes.

    Raises:
        WorkspaceError: a tracker of a new run cannot be opened. A resumed run continues without.
    """
    sinks: list[TrackerSink] = []
    for name in dict.fromkeys(names):
        folder = workspace / "trackers" / name
        run = TrackedRun(workspace.resolve().name, folder, parameters, resumed)
        sink = TrackerSink(name, TRACKERS[name], run, warn)
        if sink.failure is not None and not resumed:
            for opened in sinks:
                opened.close()
            raise WorkspaceError(
                f"--track {name}: {sink.failure}; fix that, or leave {name} out of --track"
            )
        sinks.append(sink)
    return sinks


def curve_points(record: Record) -> tuple[dict[str, float], int]:
    """Return the points that ``record`` adds to curves, and their step (inference: batch size).

    Names are ``train/loss``, ``validation/top1``, ``telemetry/power_w`` and so on. Values that
    were not measured or are not finite are left out.
    """
    values, kind = record.values, record.kind
    if kind == "end":
        return _numbers("results", values.get("results") or {}), record.step
    if kind in ("start", "warning"):
        return {}, record.step
    curves = {name: value for name, value in values.items() if name not in _NO_CURVE}
    step = values["batch"] if kind == "inference" else record.step
    return _numbers("train" if kind == "step" else kind, curves), step


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


class Tracker(Protocol):
    """What a sink calls of a tracker's run. Any method may raise any exception."""

    def start(self, values: Mapping[str, Any]) -> None:
        """Record the ``start`` record's values: sizes, device, first step."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add one point to each named curve. step: optimizer step, or batch size of inference."""

    def close(self, *, finished: bool) -> None:
        """Write what is left. finished: the run was not stopped early."""


class TrackerSink:
    """Passes records to one tracker in a separate thread; never raises.

    failure: why it stopped recording, or None.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[TrackedRun], Tracker],
        run: TrackedRun,
        warn: Callable[[str], None],
        *,
        timeout_s: float = 60.0,
        max_waiting: int = 10_000,
    ) -> None:
        """Open the tracker; check ``failure`` afterwards.

        timeout_s: longest wait for opening and for closing. max_waiting: records that may be
        queued before the tracker counts as failed.
        """
        self._name = name
        self._warn = warn
        self._timeout_s = timeout_s
        self._records: queue.Queue[Record | None] = queue.Queue(max_waiting)
        self._opened = threading.Event()
        self._warned = self._closed = False
        self.failure: str | None = None
        # A daemon, so that a tracker that hangs does not keep the process alive.
        self._thread = threading.Thread(
            target=self._pass_records, args=(opener, run), name=f"track-{name}", daemon=True
        )
        self._thread.start()
        if not self._opened.wait(timeout_s):
            self.failure = f"not open after {timeout_s:g} s"

    def write(self, record: Record) -> None:
        """Queue the record; the first write after a failure warns."""
        if self._closed:
            return
        if self.failure is None:
            try:
                self._records.put_nowait(record)
            except queue.Full:
                self.failure = f"{self._records.maxsize:,} records are waiting for it"
        self._warn_once()

    def close(self) -> None:
        """Wait until queued records are written, at most ``timeout_s``; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self.failure is None:
            try:
                self._records.put(None, timeout=self._timeout_s)
                self._thread.join(self._timeout_s)
                done = not self._thread.is_alive()
            except queue.Full:
                done = False
            if not done:
                self.failure = f"not done after {self._timeout_s:g} s"
        self._warn_once()

    def _warn_once(self) -> None:
        if self.failure is not None and not self._warned:
            self._warned = True
            self._warn(f"{self._name} stopped recording: {self.failure}; the run continues")

    def _pass_records(self, opener: Callable[[TrackedRun], Tracker], run: TrackedRun) -> None:
        finished = False
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            tracker = opener(run)
            self._opened.set()
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
        except Exception as error:
            self.failure = _one_line(error)
            self._opened.set()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
