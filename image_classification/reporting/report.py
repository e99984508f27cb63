"""``report.json``: its schema as typed dataclasses, writing it, and reading one of unknown origin.

The dataclasses are the only description of the schema. Their fields are the keys of the file, in
its order; a value that was not measured is null. Their type hints are what a report that is read
must satisfy: a key without a default must be there, and a key with one is missing from reports of
earlier releases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import datetime, timezone
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from image_classification.config.schema import RunNames
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USER,
    WorkspaceError,
)
from image_classification.core.files import write_atomically
from image_classification.core.units import finite, other_topk, printable

REPORT_NAME = "report.json"

STATUSES = {
    EXIT_DONE: "done",
    EXIT_BUG: "bug",
    EXIT_USER: "user error",
    EXIT_DIVERGED: "diverged",
    EXIT_STOPPED: "stopped",
}

# Beyond these, sums and ratios of figures might overflow.
_MAX, _MIN = 1e18, 1e-9


@dataclass(frozen=True)
class _Check:
    """What a value must be: in words, and as a test."""

    words: str
    test: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value == 0 or _MIN <= abs(value) <= _MAX


def _is_time(value: Any) -> bool:
    try:
        parsed = datetime.fromisoformat(value)
        parsed.astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return False
    return parsed.tzinfo is not None


def _is_device(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, dict) and isinstance(value.get("name"), str)
    )


Number = Annotated[float, _Check("a number", _is_number)]
Positive = Annotated[float, _Check("a number above 0", lambda v: _is_number(v) and v > 0)]
Measured = Annotated[float, _Check("a number of 0 or more", lambda v: _is_number(v) and v >= 0)]
Percent = Annotated[float, _Check("a percentage", lambda v: _is_number(v) and 0 <= v <= 100)]
Count = Annotated[int, _Check("a whole number from 1", lambda v: type(v) is int and 1 <= v <= _MAX)]
Whole = Annotated[int, _Check("a whole number", lambda v: type(v) is int and 0 <= v < 2**63)]
Time = Annotated[str, _Check("a time in ISO 8601 with its zone", _is_time)]
Device = Annotated[Any, _Check("text, or an object with a name", _is_device)]
VerdictWord = Literal["reproduced", "short", "better", "not-comparable"]
ExitCode = Annotated[
    int,
    _Check(f"one of {', '.join(map(str, STATUSES))}", lambda v: type(v) is int and v in STATUSES),
]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Percentiles of the time of a training step, in seconds."""

    p50: Measured | None
    p95: Measured | None
    p99: Measured | None


@dataclass(frozen=True, kw_only=True)
class TrainResults:
    """Training: images per second of wall time, data wait included."""

    images_per_s: Measured | None
    images_per_s_per_device: Measured | None = None
    step_time_s: StepTime
    data_wait_fraction: Measured | None
    epochs: Measured | None
    steps: Whole | None = None
    images: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationResults:
    """The last validation. other_topk: ``topN`` in percent for other N than 1 and 5."""

    top1: Percent | None
    top5: Percent | None
    loss: Measured | None
    images: Whole | None
    other_topk: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TargetResults:
    """When validation top-1 first reached ``run.stop_at_top1``; null if it did not."""

    stop_at_top1: Percent | None = None
    top1: Percent | None = None
    epoch: Measured | None = None
    step: Whole | None = None
    time_s: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class StartResults:
    """One start of a run. changes: settings that were changed to continue it."""

    step: Whole
    world_size: Count | None = None
    resumed_from: str | None = None
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one pass, in milliseconds."""

    mean: Measured | None
    p50: Measured | None
    p90: Measured | None
    p95: Measured | None
    p99: Measured | None


@dataclass(frozen=True, kw_only=True)
class InferenceResults:
    """Inference at one batch size."""

    batch: Count
    images_per_s: Measured | None
    latency_ms: Latency


@dataclass(frozen=True, kw_only=True)
class DataResults:
    """Loading images without training."""

    images_per_s: Measured | None


@dataclass(frozen=True, kw_only=True)
class TimeResults:
    """Where the time went, in seconds."""

    total: Measured | None
    train: Measured | None = None
    validation: Measured | None = None
    first_step: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured."""

    train: TrainResults
    validation: ValidationResults
    validation_ema: ValidationResults
    target: TargetResults = TargetResults()
    starts: tuple[StartResults, ...] | None = None
    inference: tuple[InferenceResults, ...] | None
    data: DataResults
    time_s: TimeResults


@dataclass(frozen=True, kw_only=True)
class DeviceTelemetry:
    """What one device's sensors measured. throttle_reasons: reason -> share of the time."""

    name: str | None
    power_w_mean: Measured | None
    power_w_max: Measured | None = None
    energy_j: Measured | None = None
    memory_peak_bytes: Measured | None
    utilization_mean: Measured | None = None
    temperature_c_max: Number | None = None
    throttled: bool | None = None
    throttle_reasons: Mapping[str, float] | None = None
    clock_mhz_mean: Measured | None = None
    window_s: Measured | None = None
    samples: Measured | None = None
    source: Any = None


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What the sensors of all devices measured. source: the sensors' names."""

    devices: tuple[DeviceTelemetry, ...] | None
    energy_j: Measured | None
    images_per_joule: Measured | None
    source: Any = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the run ran on. ended_at: when the report was made."""

    python: str | None
    torch: str | None
    torchvision: str | None
    dali: str | None
    apex: str | None = None
    cuda: str | None
    cudnn: str | int | None
    driver: str | None
    devices: tuple[Device, ...] | None
    cpu: str | None
    container: str | None
    git_commit: str | None
    ended_at: Time | None = None

    @property
    def device_names(self) -> list[str]:
        """The devices' names, each once, sorted."""
        named = self.devices or ()
        return sorted({str(d["name"] if isinstance(d, dict) else d) for d in named})


@dataclass(frozen=True, kw_only=True)
class PublishedComparison:
    """A published figure and the run's. figure: a key of `figures`, with its batch size."""

    id: str
    figure: str
    unit: str
    published: Positive
    measured: Measured | None
    ratio: Measured | None = None
    comparable: bool
    why: str
    verdict: VerdictWord

    @property
    def spread(self) -> float | None:
        """The printed spread: not in a run's report."""
        return None


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How the run ended."""

    status: str
    code: ExitCode
    message: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What ran, on what, what was measured, how it compares: the content of ``report.json``.

    config: the resolved configuration, section -> key -> value.
    """

    name: RunNames
    config: dict[str, dict[str, Any]]
    environment: Environment
    results: Results
    telemetry: Telemetry
    published: tuple[PublishedComparison, ...]
    exit: Exit
    schema_version: int = 1


# Settings that the comparison of reports relies on; others may have been added since.
_CONFIG_HINTS: Mapping[str, Any] = {
    "data.path": str,
    "batch.per_device": Count,
    "batch.global": Count,
    "platform.device": str,
    "platform.num_devices": Count,
    "platform.num_nodes": Count,
    "run.seed": Whole,
}

Section = TypeVar("Section")


class _Problem(Exception):
    """What no report has, with its key."""


def parse(section: type[Section], value: Any, where: str = "") -> Section:
    """Return ``value``, a JSON object, as ``section``, with text made safe for terminals.

    Keys that this release does not know are left out.

    Raises:
        ValueError: a key is missing or a value is not what the type hint says, by its key.
    """
    try:
        return _object(section, value, where, _parsed)  # type: ignore[no-any-return]
    except _Problem as problem:
        raise ValueError(str(problem)) from None


def complete(section: type[Section], measured: Mapping[str, Any], where: str) -> Section:
    """Return what was measured as ``section``: null for the rest, and for NaN and infinities.

    Raises:
        ValueError: a key that the section does not have.
    """
    return _object(section, measured, where, _completed)  # type: ignore[no-any-return]


_Convert = Callable[[Any, Any, str], Any]


@cache
def _fields(section: Any) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(section, include_extras=True)
    return tuple((entry, hints[entry.name]) for entry in fields(section))


def _object(section: Any, value: Any, where: str, convert: _Convert) -> Any:
    """Build the dataclass ``section`` from an object; ``convert`` is for each of its values."""
    if not isinstance(value, Mapping):
        raise _Problem(f"{where} is {_shown(value)}, not an object")
    values: dict[str, Any] = {}
    extra = other_topk(value) if section is ValidationResults else []
    for entry, hint in _fields(section):
        name = f"{where}.{entry.name}" if where else entry.name
        if entry.name == "other_topk":
            values[entry.name] = {key: convert(Any, value[key], f"{where}.{key}") for key in extra}
        elif convert is _completed or value.get(entry.name) is not None:
            values[entry.name] = convert(hint, value.get(entry.name), name)
        elif entry.default is MISSING:
            if entry.name not in value:
                raise _Problem(f"{name} is missing")
            values[entry.name] = convert(hint, None, name)
    unknown = set(value) - {entry.name for entry, _ in _fields(section)} - set(extra)
    if unknown and convert is _completed:
        raise ValueError(f"{where} has no key {', '.join(sorted(unknown))}")
    return section(**values)


def _completed(hint: Any, value: Any, where: str) -> Any:
    hint = _without_null(hint)
    if is_dataclass(hint):
        return _object(hint, value or {}, where, _completed)
    if get_origin(hint) is tuple and value is not None:
        return tuple(_completed(get_args(hint)[0], item, where) for item in value)
    return finite(value)


def _parsed(hint: Any, value: Any, where: str) -> Any:
    inner = _without_null(hint)
    if value is None and inner is not hint:
        return None
    if is_dataclass(inner):
        return _object(inner, value, where, _parsed)
    if get_origin(inner) is tuple:
        if not isinstance(value, list):
            raise _Problem(f"{where} is {_shown(value)}, not a list")
        item = get_args(inner)[0]
        return tuple(_parsed(item, each, f"{where}[{at}]") for at, each in enumerate(value))
    if where == "config":
        _check_config(value)
    elif not _fits(inner, value):
        null = "" if inner is hint else " or null"
        raise _Problem(f"{where} is {_shown(value)}, not {_words(inner)}{null}")
    return _safe(value)


def _check_config(config: Any) -> None:
    if not isinstance(config, dict):
        raise _Problem(f"config is {_shown(config)}, not an object")
    for key, section in config.items():
        if not isinstance(section, dict):
            raise _Problem(f"config.{printable(key)} is not an object")
    for key, hint in _CONFIG_HINTS.items():
        section, _, name = key.partition(".")
        if name not in config.get(section, {}):
            raise _Problem(f"config.{key} is missing")
        _parsed(hint, config[section][name], f"config.{key}")


def _without_null(hint: Any) -> Any:
    """Return what ``hint`` is besides null; ``hint`` itself where null is not allowed."""
    if get_origin(hint) not in (Union, UnionType) or type(None) not in get_args(hint):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return reduce(or_, kinds)


def _fits(hint: Any, value: Any) -> bool:
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin is Annotated:
        return bool(get_args(hint)[1].test(value))
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(kind, value) for kind in get_args(hint))
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, origin or hint)


_WORDS = {str: "text", bool: "true or false", int: "a number", Mapping: "an object"}


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Annotated:
        return str(get_args(hint)[1].words)
    if origin is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    return _WORDS.get(hint) or "an object"


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(key): _safe(item) for key, item in value.items()}
    return [_safe(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "an object"
    if type(value) is int and abs(value) > _MAX:
        return "a number out of range"
    return printable(repr(value))[:40]


def to_json(value: Any) -> Any:
    """Return a report, or a part of one, as plain values for JSON."""
    if is_dataclass(value):
        content = {entry.name: to_json(getattr(value, entry.name)) for entry in fields(value)}
        topk = content.pop("other_topk", {})
        return {**content, **topk}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(report: RunReport, folder: Path) -> Path:
    """Write ``report.json`` into ``folder`` atomically; return its path.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    path = folder / REPORT_NAME
    write_atomically(path, json.dumps(to_json(report), indent=2, allow_nan=False) + "\n")
    return path


def read_report(path: Path) -> RunReport:
    """Read a ``report.json`` of any origin and check it against the schema.

    Raises:
        WorkspaceError: missing, not JSON, of another schema version, or damaged; the message names
            the key.
    """
    where = printable(str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != 1:
            raise WorkspaceError(
                f"{where} has schema version {printable(str(version))[:40]}, this release reads "
                "1; use the release that wrote it"
            )
        return parse(RunReport, content)
    except OSError as error:
        raise WorkspaceError(
            f"cannot read {where}: {error.strerror or error}; name the folder of a finished run"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WorkspaceError(
            f"{where} is not JSON ({error}); run again to write a new one"
        ) from error
    except RecursionError as error:
        raise WorkspaceError(f"{where} is not a report: nested too deeply; leave it out") from error
    except ValueError as error:
        raise WorkspaceError(
            f"{where} is damaged: {error}; run again to write a new one"
        ) from error
