"""The published log format: ``DLLL {json}`` lines with the predecessor's metric names.

Facts from the `dllogger` package (NVIDIA/dllogger, JSONStreamBackend) and from the metrics that
NVIDIA DeepLearningExamples PyTorch/Classification/ConvNets registers: times are strings, latencies
are seconds, ``step`` is ``[epoch, iteration]``, ``[epoch]`` or ``[]`` for the whole run, and
parameters are logged under the step ``"PARAMETER"``. Epochs count from 0, iterations from 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from image_classification.core.types import Record
from image_classification.reporting.files import LineFile
from image_classification.reporting.plain import finite, other_topk

_LOSS = {"format": ":.5f"}
_RATE = {"unit": "img/s", "format": ":.2f"}
_SECONDS = {"unit": "s", "format": ":.5f"}
_PERCENT = {"unit": "%", "format": ":.2f"}

_TRAIN_METADATA: dict[str, dict[str, str]] = {
    "loss": _LOSS,
    "compute_ips": _RATE,
    "total_ips": _RATE,
    "data_time": _SECONDS,
    "compute_time": _SECONDS,
    "lr": {},
}
_VAL_METADATA: dict[str, dict[str, str]] = {
    "top1": _PERCENT,
    "top5": _PERCENT,
    "loss": _LOSS,
    "compute_ips": _RATE,
    "total_ips": _RATE,
    "compute_latency": _SECONDS,
    "compute_latency_at99": _SECONDS,
    "compute_latency_at95": _SECONDS,
}
_PREFIXES = {"validation": "val", "validation_ema": "val_ema"}


class DLLoggerSink:
    """``--raport-file``: the run in DLLogger's line format."""

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
        self._declared: set[str] = set(_PREFIXES.values()) if append else set()
        if not append:
            self._declare("train", _TRAIN_METADATA)
            self._declare("val", _VAL_METADATA)

    def write(self, record: Record) -> None:
        """Write the record's line; kinds the format has no names for write nothing."""
        values = record.values
        if record.kind == "start":
            self._log("PARAMETER", {**self._parameters, **values})
        elif record.kind == "step":
            self._log([record.epoch, values.get("epoch_step", record.step)], _step(values))
        elif record.kind == "epoch":
            self._log([record.epoch], _epoch(values))
        elif record.kind in _PREFIXES:
            prefix = _PREFIXES[record.kind]
            if prefix not in self._declared:
                self._declare(prefix, _VAL_METADATA)
            self._log([record.epoch], _validation(prefix, values))
        elif record.kind == "inference":
            self._log(["Inference batch", values.get("batch")], _inference(values))
        elif record.kind == "end":
            self._log([], _run(values.get("results") or {}))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _declare(self, prefix: str, metadata: Mapping[str, Mapping[str, str]]) -> None:
        self._declared.add(prefix)
        for name, about in metadata.items():
            self._line({"type": "METADATA", "metric": f"{prefix}.{name}"}, metadata=about)

    def _log(self, step: Any, data: Mapping[str, Any]) -> None:
        measured = {key: value for key, value in data.items() if value is not None}
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


def _ms_as_s(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _step(values: Mapping[str, Any]) -> dict[str, Any]:
    rate = values.get("images_per_s")
    step_time_s, data_wait_s = values.get("step_time_s"), values.get("data_wait_s")
    compute_s = _minus(step_time_s, data_wait_s)
    images = None if rate is None or step_time_s is None else rate * step_time_s
    return {
        "train.loss": values.get("loss"),
        "train.compute_ips": _over(images, compute_s),
        "train.total_ips": rate,
        "train.data_time": data_wait_s,
        "train.compute_time": compute_s,
        "train.lr": values.get("lr"),
    }


def _epoch(values: Mapping[str, Any]) -> dict[str, Any]:
    data_wait_s, steps = values.get("data_wait_s"), values.get("steps")
    return {
        "train.loss": values.get("loss"),
        "train.compute_ips": values.get("compute_images_per_s"),
        "train.total_ips": values.get("images_per_s"),
        "train.data_time": _over(data_wait_s, steps),
        "train.compute_time": _over(_minus(values.get("time_s"), data_wait_s), steps),
        "train.lr": values.get("lr"),
    }


def _validation(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{prefix}.top1": values.get("top1"),
        f"{prefix}.top5": values.get("top5"),
        f"{prefix}.loss": values.get("loss"),
        f"{prefix}.compute_ips": values.get("compute_images_per_s"),
        f"{prefix}.total_ips": values.get("images_per_s"),
        **{f"{prefix}.{name}": values[name] for name in other_topk(values)},
    }


def _inference(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "val.total_ips": values.get("images_per_s"),
        "val.compute_latency": _ms_as_s(values.get("latency_ms_mean")),
        "val.compute_latency_at95": _ms_as_s(values.get("latency_ms_p95")),
        "val.compute_latency_at99": _ms_as_s(values.get("latency_ms_p99")),
    }


def _run(results: Mapping[str, Any]) -> dict[str, Any]:
    data = {"train.total_ips": (results.get("train") or {}).get("images_per_s")}
    for section, prefix in _PREFIXES.items():
        figures = results.get(section) or {}
        names = ("top1", "top5", *other_topk(figures), "loss")
        data |= {f"{prefix}.{name}": figures.get(name) for name in names}
    return data
