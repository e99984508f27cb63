"""A finished run, read from a file that may be of anybody's making."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import RunReport
from image_classification.reporting.measured import measured
from image_classification.reporting.summary import REPORT_NAME, STATUSES, read_report

MAX_REPORT_BYTES = 16 * 2**20
"""Largest report that is read; a real one has some ten kilobytes."""

VERDICTS = ("reproduced", "short", "better", "not-comparable")

_LARGEST = 1e18


@dataclass(frozen=True)
class RecordedRun:
    """One report, checked. path: of its ``report.json``; ended_at: in UTC.

    time_is_known: False where the report does not say when it was made, and ended_at is the
    file's own time. figures: see `measured`.
    """

    path: Path
    report: RunReport
    figures: Mapping[str, float]
    ended_at: datetime
    time_is_known: bool

    @property
    def label(self) -> str:
        """How to call it in tables: its folder's name."""
        name = self.path.parent.name if self.path.name == REPORT_NAME else self.path.stem
        return printable(name or str(self.path))

    @property
    def seed(self) -> int:
        """Its ``run.seed``."""
        return int(self.report.config["run"]["seed"])

    @property
    def num_devices(self) -> int:
        """Devices over all nodes."""
        platform = self.report.config["platform"]
        return int(platform["num_devices"] * platform["num_nodes"])

    @property
    def finished(self) -> bool:
        """Whether it went to its end."""
        return bool(self.report.exit["code"] == 0)

    @property
    def time_text(self) -> str:
        """When it ended, to the minute; with ``~`` where that is the file's own time."""
        mark = "" if self.time_is_known else "~"
        return f"{mark}{self.ended_at:%Y-%m-%d %H:%M}"


def printable(text: str) -> str:
    """Replace what would drive a terminal or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_run(path: Path) -> RecordedRun:
    """Read a run: its folder, or its ``report.json``.

    Raises:
        WorkspaceError: missing, too large, not JSON, of another schema version, or with a value
            that no report has; the message names file and key.
    """
    try:
        file = path / REPORT_NAME if path.is_dir() else path
        status = file.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        where = printable(str(path))
        raise WorkspaceError(
            f"cannot read {where}: {reason}; name the folder of a finished run"
        ) from error
    where = printable(str(file))
    if not file.is_file():
        raise WorkspaceError(f"{where} is not a file; name the folder of a finished run")
    if status.st_size > MAX_REPORT_BYTES:
        raise WorkspaceError(
            f"{where} has {status.st_size:,} bytes, no report has more than {MAX_REPORT_BYTES:,}; "
            "name the folder of a finished run"
        )
    try:
        report = read_report(file)
    except RecursionError as error:
        raise WorkspaceError(f"{where} is not a report: nested too deeply; leave it out") from error
    problem = next(_problems(vars(report), _SHAPE, ""), None)
    if problem is not None:
        raise WorkspaceError(f"{where} is damaged: {problem}; run again to write it anew")
    report = replace(report, **{key: _clean(value) for key, value in vars(report).items()})
    stated = _time(report.environment.get("ended_at"))
    ended_at = stated or datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return RecordedRun(file, report, measured(report), ended_at, stated is not None)


def find_reports(folder: Path) -> list[Path]:
    """Return every ``report.json`` below ``folder``, sorted; links to folders are not followed.

    Raises:
        WorkspaceError: no such folder, it cannot be listed, or no report in it.
    """
    where = printable(str(folder))

    def refuse(error: OSError) -> None:
        raise WorkspaceError(
            f"cannot list {printable(str(error.filename))}: {error.strerror or error}; "
            "name a folder that holds runs"
        ) from error

    found = [
        Path(parent) / REPORT_NAME
        for parent, _, files in os.walk(folder, onerror=refuse)
        if REPORT_NAME in files
    ]
    if not found:
        raise WorkspaceError(f"{where} holds no {REPORT_NAME}; name a folder that holds runs")
    return sorted(found)


def _time(stated: Any) -> datetime | None:
    if stated is None:
        return None
    parsed = datetime.fromisoformat(stated)
    return parsed.astimezone(timezone.utc)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Is:
    """One leaf of a report: what it must be, in words, and a test."""

    words: str
    test: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) <= _LARGEST


def _is_time(value: Any) -> bool:
    try:
        parsed = datetime.fromisoformat(value)
        parsed.astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return False
    return parsed.tzinfo is not None


_TEXT = _Is("text", lambda v: isinstance(v, str))
_MAYBE_TEXT = _Is("text or null", lambda v: v is None or isinstance(v, str))
_MAPPING = _Is("an object", lambda v: isinstance(v, dict))
_NUMBER = _Is("a number", _is_number)
_MEASURED = _Is("a number of 0 or more, or null", lambda v: v is None or (_is_number(v) and v >= 0))
_COUNT = _Is("a whole number from 1", lambda v: type(v) is int and 1 <= v <= _LARGEST)
_WHOLE = _Is("a whole number", lambda v: type(v) is int and 0 <= v < 2**63)
_PERCENT = _Is("a percentage or null", lambda v: v is None or (_is_number(v) and 0 <= v <= 100))


@dataclass(frozen=True)
class _Rows:
    """A list of one shape; null where ``optional``."""

    shape: Any
    optional: bool = False


@dataclass(frozen=True)
class _Later:
    """A key that reports of the first release lack: absent is as good as null."""

    shape: Any


_VALIDATION = {"top1": _PERCENT, "top5": _PERCENT, "loss": _MEASURED, "images": _MEASURED}
_DEVICE = _Is(
    "text, or an object with a name",
    lambda v: isinstance(v, str) or (isinstance(v, dict) and isinstance(v.get("name"), str)),
)
_SHAPE: dict[str, Any] = {
    "name": {key: _TEXT for key in ("model", "precision", "mode", "platform", "recipe")},
    "config": {
        "data": {"path": _TEXT},
        "batch": {"per_device": _COUNT, "global": _COUNT},
        "platform": {"device": _TEXT, "num_devices": _COUNT, "num_nodes": _COUNT},
        "run": {"seed": _WHOLE},
    },
    "environment": {
        **{
            key: _MAYBE_TEXT
            for key in ("python", "torch", "torchvision", "dali", "cuda", "cpu", "git_commit")
        },
        "cudnn": _Is("text, a number or null", lambda v: v is None or isinstance(v, (str, int))),
        "driver": _MAYBE_TEXT,
        "container": _MAYBE_TEXT,
        "devices": _Rows(_DEVICE, optional=True),
        "ended_at": _Later(_Is("a time in ISO 8601 with its zone", _is_time)),
    },
    "results": {
        "train": {
            "images_per_s": _MEASURED,
            "step_time_s": {key: _MEASURED for key in ("p50", "p95", "p99")},
            "data_wait_fraction": _MEASURED,
            "epochs": _MEASURED,
        },
        "validation": _VALIDATION,
        "validation_ema": _VALIDATION,
        "target": _Later(
            {
                "stop_at_top1": _PERCENT,
                "top1": _PERCENT,
                "epoch": _MEASURED,
                "time_s": _MEASURED,
            }
        ),
        "inference": _Rows(
            {
                "batch": _COUNT,
                "images_per_s": _MEASURED,
                "latency_ms": {key: _MEASURED for key in ("mean", "p50", "p90", "p95", "p99")},
            },
            optional=True,
        ),
        "data": {"images_per_s": _MEASURED},
        "time_s": {"total": _MEASURED},
    },
    "telemetry": {
        "devices": _Rows(
            {"name": _MAYBE_TEXT, "power_w_mean": _MEASURED, "memory_peak_bytes": _MEASURED},
            optional=True,
        ),
        "energy_j": _MEASURED,
        "images_per_joule": _MEASURED,
    },
    "published": _Rows(
        {
            "id": _TEXT,
            "figure": _TEXT,
            "unit": _TEXT,
            "published": _NUMBER,
            "measured": _MEASURED,
            "comparable": _Is("true or false", lambda v: isinstance(v, bool)),
            "why": _TEXT,
            "verdict": _Is(f"one of {', '.join(VERDICTS)}", lambda v: v in VERDICTS),
        }
    ),
    "exit": {
        "status": _TEXT,
        "code": _Is(
            f"one of {', '.join(map(str, STATUSES))}", lambda v: type(v) is int and v in STATUSES
        ),
        "message": _TEXT,
    },
}


def _problems(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Yield what about ``value`` no report has, in words."""
    if isinstance(shape, _Later):
        if value is not None:
            yield from _problems(value, shape.shape, where)
    elif isinstance(shape, _Is):
        if not shape.test(value):
            yield f"{where} is {_shown(value)}, not {shape.words}"
    elif isinstance(shape, _Rows):
        if value is None and shape.optional:
            return
        if not isinstance(value, list):
            yield f"{where} is {_shown(value)}, not a list"
            return
        for at, row in enumerate(value):
            yield from _problems(row, shape.shape, f"{where}[{at}]")
    elif not isinstance(value, dict):
        yield f"{where} is {_shown(value)}, not {_MAPPING.words}"
    else:
        for key, inner in shape.items():
            name = f"{where}.{key}" if where else key
            if key not in value and not isinstance(inner, _Later):
                yield f"{name} is missing"
            else:
                yield from _problems(value.get(key), inner, name)
        if where == "config":
            odd = [key for key, section in value.items() if not isinstance(section, dict)]
            if odd:
                yield f"config.{printable(odd[0])} is not {_MAPPING.words}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        return "a number beyond all bounds"
    return printable(repr(value))[:40]
