"""``report.json``: its schema as typed dataclasses, and writing it.

The dataclasses are the only description of the schema. Their fields are the keys of the file, in
its order; a value that was not measured is null. `run_folder` checks a report that is read against
their type hints: a key without a default must be there, one with a default may be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from datetime import datetime, timezone
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from image_classification.config.schema import RunNames
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USER,
)
from image_classification.core.files import write_atomically

REPORT_NAME = "report.json"

STATUSES = {
    EXIT_DONE: "done",
    EXIT_BUG: "bug",
    EXIT_USER: "user error",
    EXIT_DIVERGED: "diverged",
    EXIT_STOPPED: "stopped",
}

# Beyond these, sums and ratios of figures might overflow.
_MIN, MAX_NUMBER = 1e-9, 1e18


@dataclass(frozen=True)
class Check:
    """What a value of an annotated type must be: in words, and as a test."""

    words: str
    test: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value == 0 or _MIN <= abs(value) <= MAX_NUMBER


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


Number = Annotated[float, Check("a number", _is_number)]
Positive = Annotated[float, Check("a number above 0", lambda v: _is_number(v) and v > 0)]
Measured = Annotated[float, Check("a number of 0 or more", lambda v: _is_number(v) and v >= 0)]
Percent = Annotated[float, Check("a percentage", lambda v: _is_number(v) and 0 <= v <= 100)]
Count = Annotated[
    int, Check("a whole number from 1", lambda v: type(v) is int and 1 <= v <= MAX_NUMBER)
]
Whole = Annotated[int, Check("a whole number", lambda v: type(v) is int and 0 <= v < 2**63)]
Time = Annotated[str, Check("a time in ISO 8601 with its zone", _is_time)]
Device = Annotated[Any, Check("text, or an object with a name", _is_device)]
VerdictWord = Literal["reproduced", "short", "better", "not-comparable"]
ExitCode = Annotated[
    int,
    Check(f"one of {', '.join(map(str, STATUSES))}", lambda v: type(v) is int and v in STATUSES),
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


@cache
def section_fields(section: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """Return the fields of a dataclass of the schema with their type hints."""
    hints = get_type_hints(section, include_extras=True)
    return tuple((entry, hints[entry.name]) for entry in fields(section))


def without_null(hint: Any) -> Any:
    """Return what ``hint`` allows besides null; ``hint`` itself if it does not allow null."""
    if get_origin(hint) not in (Union, UnionType) or type(None) not in get_args(hint):
        return hint
    return reduce(or_, (kind for kind in get_args(hint) if kind is not type(None)))


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
