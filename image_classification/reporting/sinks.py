"""Where records go: a protocol, a fan-out, and ``metrics.jsonl``.

What a record's ``values`` may hold, all optional, units in the names:

- start: num_parameters, steps_per_epoch, total_steps, epochs, start_step, num_train_images,
  num_val_images, world_size, global_batch, device, data
- step: loss, lr, images_per_s, data_wait_s and step_time_s (both means of one step since the last
  record), epoch_step (from 1), steps_per_epoch, total_steps, memory_bytes, loss_scale,
  skipped_steps
- epoch: images, time_s, images_per_s, compute_images_per_s (data wait left out), loss, lr, steps,
  data_wait_s (of the whole epoch)
- validation, validation_ema: top1, top5, loss, images, time_s, images_per_s,
  compute_images_per_s, is_best
- checkpoint: path, bytes, is_best, time_s (from the step until it is whole), stall_s (of that, what
  training stood still), waited_s (of that, for the checkpoint before). It comes when it is whole,
  after records of later steps
- inference: batch, images_per_s, latency_ms_mean, latency_ms_p50, _p90, _p95, _p99
- data: images_per_s, images, time_s
- telemetry: unix_time_s (end of the span), span_s, power_w (sum of the devices of rank 0's node),
  utilization (a fraction) and clock_mhz (means of them), memory_bytes and temperature_c (of the
  highest), images_per_s (of the steps that ended in the span; null where none did)
- warning: message
- end: results (the ``results`` of report.json)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.files import LineFile
from image_classification.reporting.plain import finite


class Sink(Protocol):
    """Receives every record of a run, on rank 0."""

    def write(self, record: Record) -> None:
        """Take one record; it is safely on its way when this returns."""
        ...

    def close(self) -> None:
        """Flush and release; may be called twice."""
        ...


class MultiSink:
    """Hands each record to several sinks, in order."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, record: Record) -> None:
        """Write to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Close every sink, also when closing one of them fails."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


class JsonlSink:
    """``metrics.jsonl``: one JSON object a line, readable while the run goes on.

    Keys: kind, step, epoch, time_s (since this process began to record), timestamp (UTC,
    ISO 8601), values. NaN and infinities are null.
    """

    def __init__(
        self,
        path: Path,
        *,
        append: bool = False,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        """Open ``path``; ``append`` continues the file of a run that is resumed.

        Raises:
            WorkspaceError: the file cannot be written.
        """
        self._lines = LineFile(path, append=append)
        self._monotonic_s = monotonic_s
        self._unix_time_s = unix_time_s
        self._start_s = monotonic_s()

    def write(self, record: Record) -> None:
        """Append one line."""
        now = datetime.fromtimestamp(self._unix_time_s(), timezone.utc)
        line = {
            "kind": record.kind,
            "step": record.step,
            "epoch": record.epoch,
            "time_s": round(self._monotonic_s() - self._start_s, 6),
            "timestamp": now.isoformat(timespec="milliseconds"),
            "values": finite(record.values),
        }
        self._lines.write(json.dumps(line, allow_nan=False))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


@dataclass(frozen=True)
class TimedRecord:
    """A record and when it was written; unix_time_s is None where the line does not say."""

    record: Record
    unix_time_s: float | None


def read_metrics(path: Path) -> list[Record]:
    """Read ``metrics.jsonl``, leaving out what a resumed run did over again.

    A run that is killed after step 120 and resumed from a checkpoint at step 100 has steps 101 to
    120 twice in its file; the later ones count.

    Raises:
        WorkspaceError: no such file, or a line (but for a torn last one) is not a record.
    """
    return [timed.record for timed in read_timed_metrics(path)]


def read_timed_metrics(path: Path) -> list[TimedRecord]:
    """Read the same with the time of each record; raises WorkspaceError as `read_metrics`."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkspaceError(f"cannot read {path}: {reason}; name the folder of a run") from error
    whole, _, _torn = content.rpartition("\n")
    kept: list[TimedRecord] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        timed = _parse(line, f"{path}:{number}")
        if timed.record.kind == "start":
            start_step = timed.record.values.get("start_step")
            start_step = start_step if isinstance(start_step, int) else 0
            kept = [before for before in kept if _before(before.record, start_step)]
        kept.append(timed)
    return kept


def _before(record: Record, start_step: int) -> bool:
    return record.kind in ("start", "warning") or record.step <= start_step


def _parse(line: str, where: str) -> TimedRecord:
    try:
        fields: dict[str, Any] = json.loads(line)
        step, epoch = int(fields["step"]), int(fields["epoch"])
        record = Record(fields["kind"], step, epoch, dict(fields["values"]))
        written = fields.get("timestamp")
        time_s = None if written is None else datetime.fromisoformat(written).timestamp()
        return TimedRecord(record, time_s)
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(
            f"{where} is not a record of a run ({error}); restore the file or delete the line"
        ) from error
