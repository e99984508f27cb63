"""TensorBoard: event files in ``trackers/tensorboard``, written through its own package.

torch.utils.tensorboard would bring torch into a layer that starts without it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classification.core.units import finite
from image_classification.reporting.trackers.protocol import TrackedRun


def load() -> _Package:
    """Import what is used of tensorboard; raises whatever the import does."""
    from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    return _Package(event_pb2, summary_pb2, tensor_pb2, types_pb2, RecordWriter)


@dataclass(frozen=True)
class _Package:
    events: Any
    summaries: Any
    tensors: Any
    types: Any
    record_writer: Any


def open_tracker(run: TrackedRun) -> TensorBoardTracker:
    """Open a new event file beside those of the run's earlier starts.

    Raises:
        OSError: it cannot be written.
    """
    return TensorBoardTracker(run.folder, run.parameters, resumed=run.resumed)


class TensorBoardTracker:
    """One event file; each record is on disk when the call returns."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any], *, resumed: bool) -> None:
        self._package = load()
        self._parameters = dict(parameters)
        self._resumed = resumed
        # TensorBoard reads a folder's files in the order of their names, which is that of time.
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._writer = self._package.record_writer(self._file)
        self._write(file_version="brain.Event:2")

    def start(self, values: Mapping[str, Any]) -> None:
        """Write the configuration as text; on a resumed run, drop what it does over again."""
        start_step = values.get("start_step") or 0
        if self._resumed:
            events = self._package.events
            log = events.SessionLog(status=events.SessionLog.START)
            self._write(step=start_step + 1, session_log=log)
        rows = {**self._parameters, **values}
        table = ["| setting | value |", "|---|---|"]
        table += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
        self._write(step=start_step, summary=self._text("run", "\n".join(table)))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures as scalars at ``step``."""
        summary = self._package.summaries.Summary
        values = [summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(step=step, summary=summary(value=values))

    def close(self, *, finished: bool) -> None:
        """Close the file; the format has no mark for how a run ended."""
        self._file.close()

    def _text(self, tag: str, markdown: str) -> Any:
        proto, package = self._package.summaries, self._package
        plugin = proto.SummaryMetadata.PluginData(plugin_name="text")
        tensor = package.tensors.TensorProto(
            dtype=package.types.DT_STRING, string_val=[markdown.encode()]
        )
        value = proto.Summary.Value(
            tag=tag, metadata=proto.SummaryMetadata(plugin_data=plugin), tensor=tensor
        )
        return proto.Summary(value=[value])

    def _write(self, **fields: Any) -> None:
        event = self._package.events.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())


def _cell(value: Any) -> str:
    return str(finite(value)).replace("|", "\\|").replace("\n", " ")
