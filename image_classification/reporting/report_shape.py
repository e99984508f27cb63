"""What every ``report.json`` looks like, to tell a damaged or foreign one before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from image_classification.reporting.plain import printable
from image_classification.reporting.summary import STATUSES

NAMES = ("model", "precision", "mode", "platform", "recipe")
"""The keys of a report's name."""

VERDICTS = ("reproduced", "short", "better", "not-comparable")

# Beyond these, sums and ratios of figures might overflow.
_LARGEST, _LEAST = 1e18, 1e-9


def problem_of(report: Mapping[str, Any]) -> str | None:
    """Return in words what of ``report`` no report has; None for a sound one."""
    return next(_problems(dict(report), _SHAPE, ""), None)


@dataclass(frozen=True)
class _Is:
    """One leaf of a report: what it must be, in words, and a test."""

    words: str
    test: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value == 0 or _LEAST <= abs(value) <= _LARGEST


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


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
_NUMBER = _Is("a number above 0", lambda v: _is_number(v) and v > 0)
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
    "name": dict.fromkeys(NAMES, _TEXT),
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
        "apex": _Later(_MAYBE_TEXT),
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
        "starts": _Later(
            _Rows({"step": _WHOLE, "changes": _Is("a list of text", _is_texts)}, optional=True)
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
    if type(value) is int and abs(value) > _LARGEST:
        return "a number beyond all bounds"
    return printable(repr(value))[:40]
