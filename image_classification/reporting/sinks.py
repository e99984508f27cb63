"""Where records go: the `Sink` protocol, ``metrics.jsonl``, and DLLogger's line format.

What a record's ``values`` may hold, all optional, with units in the names:

- start: num_parameters, steps_per_epoch, total_steps, epochs, start_step, num_train_images,
  num_val_images, world_size, global_batch, device, data
- step: loss, lr, images_per_s, data_wait_s and step_time_s (both means per step since the last
  record), epoch_step (from 1), steps_per_epoch, total_steps, memory_bytes, loss_scale,
  skipped_steps
- epoch: images, time_s, images_per_s, compute_images_per_s (without data wait), loss, lr, steps,
  data_wait_s (of the whole epoch)
- validation, validation_ema: top1, top5, loss, images, time_s, images_per_s,
  compute_images_per_s, is_best
- checkpoint: path, bytes, is_best, time_s (from the step until it is complete), stall_s (the part
  of time_s in which training was paused), waited_s (the part of stall_s spent on the previous
  checkpoint). It is written when complete, after records of later steps
- inference: batch, images_per_s, latency_ms_mean, latency_ms_p50, _p90, _p95, _p99
- data: images_per_s, images, time_s
- telemetry: unix_time_s (end of the span), span_s, power_w (sum of the devices of rank 0's node),
  utilization (a fraction) and clock_mhz (means over them), memory_bytes and temperature_c (the
  highest), images_per_s (of the steps that ended in the span; null if none did)
- warning: message
- end: results (the ``results`` of report.json)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from image_classification.core.errors import WorkspaceError
from image_classification.core.files import LineFile
from image_classification.core.types import Record
from image_classification.core.units import finite, other_topk


class Sink(Protocol):
    """Receives every record of a run, on rank 0."""

    def write(self, record: Record) -> None:
        """Write one record, or queue it for a tracker."""
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
        """Close every sink, the last one first, even if closing one of them fails."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


class JsonlSink:
    """``metrics.jsonl``: one JSON object per line, readable during the run.

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
    """A record and when it was written; unix_time_s is None if its line has no time."""

    record: Record
    unix_time_s: float | None


def read_metrics(path: Path) -> list[Record]:
    """Read the records of ``metrics.jsonl``; see `read_timed_metrics`."""
    return [timed.record for timed in read_timed_metrics(path)]


def read_timed_metrics(path: Path) -> list[TimedRecord]:
    """Read ``metrics.jsonl`` without what a resumed run repeated.

    A run that is killed after step 120 and resumed from a checkpoint at step 100 has steps 101 to
    120 twice in its file; the later ones count. An incomplete last line is left out.

    Raises:
        WorkspaceError: no such file, or a line is not a record.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkspaceError(f"cannot read {path}: {reason}; name the folder of a run") from error
    complete, _, _incomplete = content.rpartition("\n")
    records: list[TimedRecord] = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            timed = _timed_record(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(
                f"{path}:{number} is not a record of a run ({error}); restore the file or delete "
                "the line"
            ) from error
        if timed.record.kind == "start":
            start_step = timed.record.values.get("start_step")
            start_step = start_step if isinstance(start_step, int) else 0
            records = [
                earlier
                for earlier in records
                if earlier.record.kind in ("start", "warning") or earlier.record.step <= start_step
            ]
        records.append(timed)
    return records


def _timed_record(line: dict[str, Any]) -> TimedRecord:
    record = Record(line["kind"], int(line["step"]), int(line["epoch"]), dict(line["values"]))
    written = line.get("timestamp")
    return TimedRecord(
        record, None if written is None else datetime.fromisoformat(written).timestamp()
    )


# The format of the `dllogger` package (NVIDIA/dllogger, JSONStreamBackend), with the metrics that
# NVIDIA DeepLearningExamples PyTorch/Classification/ConvNets registers: times are strings,
# latencies are in seconds, ``step`` is ``[epoch, iteration]``, ``[epoch]`` or ``[]`` for the whole
# run, and parameters are logged under the step ``"PARAMETER"``. Epochs count from 0, iterations
# from 1.
_LOSS = {"format": ":.5f"}
_RATE = {"unit": "img/s", "format": ":.2f"}
_SECONDS = {"unit": "s", "format": ":.5f"}
_PERCENT = {"unit": "%", "format": ":.2f"}
_METADATA: dict[str, dict[str, dict[str, str]]] = {
    "train": {
        "loss": _LOSS,
        "compute_ips": _RATE,
        "total_ips": _RATE,
        "data_time": _SECONDS,
        "compute_time": _SECONDS,
        "lr": {},
    },
    "val": {
        "top1": _PERCENT,
        "top5": _PERCENT,
        "loss": _LOSS,
        "compute_ips": _RATE,
        "total_ips": _RATE,
        "compute_latency": _SECONDS,
        "compute_latency_at99": _SECONDS,
        "compute_latency_at95": _SECONDS,
    },
}
_METADATA["val_ema"] = _METADATA["val"]
_PREFIXES = {"validation": "val", "validation_ema": "val_ema"}


class DLLoggerSink:
    """``--raport-file``: the run as ``DLLL {json}`` lines, with the published metric names."""

    def __init__(
        self,
        path: Path,
        *,
        parameters: Mapping[str, Any],
        append: bool = False,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Open ``path`` and declare the metrics' units.

        parameters: the resolved configuration as ``section.key`` -> value. append: continue the
        file of a run that is resumed.

        Raises:
            WorkspaceError: the file cannot be written.
        """
        self._lines = LineFile(path, append=append)
        self._now = now
        self._start = now()
        self._parameters = dict(parameters)
        # A file that is continued has every declaration.
        self._declared = set(_METADATA) if append else set()
        self._declare("train")
        self._declare("val")

    def write(self, record: Record) -> None:
        """Write the record's line; kinds that the format has no names for write nothing."""
        values = record.values
        match record.kind:
            case "start":
                self._log("PARAMETER", "", {**self._parameters, **values})
            case "step":
                iteration = values.get("epoch_step", record.step)
                self._log([record.epoch, iteration], "train.", _step(values))
            case "epoch":
                self._log([record.epoch], "train.", _epoch(values))
            case "validation" | "validation_ema":
                prefix = _PREFIXES[record.kind]
                self._declare(prefix)
                self._log([record.epoch], f"{prefix}.", _validation(values))
            case "inference":
                self._log(["Inference batch", values.get("batch")], "val.", _inference(values))
            case "end":
                self._log([], "", _run(values.get("results") or {}))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _declare(self, prefix: str) -> None:
        if prefix not in self._declared:
            self._declared.add(prefix)
            for name, about in _METADATA[prefix].items():
                self._line({"type": "METADATA", "metric": f"{prefix}.{name}"}, metadata=about)

    def _log(self, step: Any, prefix: str, data: Mapping[str, Any]) -> None:
        measured = {f"{prefix}{key}": value for key, value in data.items() if value is not None}
        self._line({"type": "LOG", "step": step}, data=measured)

    def _line(self, head: Mapping[str, Any], **rest: Any) -> None:
        now = self._now()
        line = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now),
            "elapsedtime": str((now - self._start).total_seconds()),
            **head,
            **rest,
        }
        self._lines.write("DLLL " + json.dumps(finite(line), allow_nan=False))


def _minus(total: float | None, part: float | None) -> float | None:
    return None if total is None or part is None else total - part


def _over(total: float | None, count: float | None) -> float | None:
    return None if total is None or not count else total / count


def _step(values: Mapping[str, Any]) -> dict[str, Any]:
    rate, data_wait_s = values.get("images_per_s"), values.get("data_wait_s")
    step_time_s = values.get("step_time_s")
    compute_s = _minus(step_time_s, data_wait_s)
    images = None if rate is None or step_time_s is None else rate * step_time_s
    return {
        "loss": values.get("loss"),
        "compute_ips": _over(images, compute_s),
        "total_ips": rate,
        "data_time": data_wait_s,
        "compute_time": compute_s,
        "lr": values.get("lr"),
    }


def _epoch(values: Mapping[str, Any]) -> dict[str, Any]:
    data_wait_s, steps = values.get("data_wait_s"), values.get("steps")
    return {
        "loss": values.get("loss"),
        "compute_ips": values.get("compute_images_per_s"),
        "total_ips": values.get("images_per_s"),
        "data_time": _over(data_wait_s, steps),
        "compute_time": _over(_minus(values.get("time_s"), data_wait_s), steps),
        "lr": values.get("lr"),
    }


def _validation(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "top1": values.get("top1"),
        "top5": values.get("top5"),
        "loss": values.get("loss"),
        "compute_ips": values.get("compute_images_per_s"),
        "total_ips": values.get("images_per_s"),
        **{name: values[name] for name in other_topk(values)},
    }


def _inference(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "total_ips": values.get("images_per_s"),
        "compute_latency": _over(values.get("latency_ms_mean"), 1000),
        "compute_latency_at95": _over(values.get("latency_ms_p95"), 1000),
        "compute_latency_at99": _over(values.get("latency_ms_p99"), 1000),
    }


def _run(results: Mapping[str, Any]) -> dict[str, Any]:
    data = {"train.total_ips": (results.get("train") or {}).get("images_per_s")}
    for section, prefix in _PREFIXES.items():
        figures = results.get(section) or {}
        names = ("top1", "top5", *other_topk(figures), "loss")
        data |= {f"{prefix}.{name}": figures.get(name) for name in names}
    return data
