"""``report.json``: its schema as typed dataclasses, and writing it.

The dataclasses are the only description of the schema. Their fields are the keys of the file, in
its order; a value that was not measured is null. `run_folder` checks a report that is read against
their type hints: a key without a default must be there, one with a default may be missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
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
from image_classification.core.units import counted, finite, weights_text

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


def _is_number(value: Any, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> bool:
    if type(value) not in (int, float) or not low <= value <= high:
        return False
    return bool(value == 0 or abs(value) >= _MIN)


def _is_time(value: Any) -> bool:
    try:
        parsed = datetime.fromisoformat(value)
        parsed.astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return False
    return parsed.tzinfo is not None


def _is_device(value: Any) -> bool:
    return isinstance(value.get("name") if isinstance(value, dict) else value, str)


# Types of values, each with a description of the valid values and a function that checks one.
Config = Annotated[dict[str, dict[str, Any]], "an object", lambda v: isinstance(v, dict)]
Shares = Annotated[Mapping[str, float], "an object", lambda v: isinstance(v, dict)]
Number = Annotated[float, "a number", _is_number]
Positive = Annotated[float, "a number above 0", lambda v: _is_number(v, _MIN)]
Measured = Annotated[float, "a number of 0 or more", lambda v: _is_number(v, 0)]
Percent = Annotated[float, "a percentage", lambda v: _is_number(v, 0, 100)]
Count = Annotated[int, "a whole number from 1", lambda v: type(v) is int and 1 <= v <= MAX_NUMBER]
Whole = Annotated[int, "a whole number", lambda v: type(v) is int and 0 <= v < 2**63]
Version = Annotated[str | int, "text or a number", lambda v: type(v) in (str, int)]
Time = Annotated[str, "a time in ISO 8601 with its zone", _is_time]
Device = Annotated[Any, "text, or an object with a name", _is_device]
VerdictWord = Literal["reproduced", "below", "better", "not-comparable"]
OLD_VERDICTS: Mapping[str, VerdictWord] = {"short": "below"}
"""Verdicts of earlier releases and their names now."""
ExitCode = Annotated[
    int,
    f"one of {', '.join(map(str, STATUSES))}",
    lambda v: type(v) is int and v in STATUSES,
]


@dataclass(frozen=True, kw_only=True)
class StepHistogram:
    """Single steps by their time, in equal bins; longer times are counted in the last bin."""

    low_s: Measured
    high_s: Measured
    counts: tuple[Whole, ...]
    longest_s: Measured


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Percentiles of the time of a training step, in seconds, and the steps by their time."""

    p50: Measured | None
    p95: Measured | None
    p99: Measured | None
    histogram: StepHistogram | None = None


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
class Top1AtStep:
    """A validation of a training run: of the weight average if there is one. epoch: from 1."""

    top1: Percent | None = None
    epoch: Measured | None = None
    step: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatedWeights:
    """The weights of an evaluation. which: best, last or step of a run's checkpoints, or file."""

    checkpoint: str | None = None
    which: str | None = None
    epoch: Measured | None = None
    step: Whole | None = None

    @property
    def text(self) -> str:
        """The weights in words: ``best checkpoint (epoch 3, step 12): PATH``."""
        return weights_text(self.checkpoint or "", self.which, self.epoch, self.step)


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
class ClassAccuracy:
    """Top-1 of the images of one class, in percent."""

    name: str
    images: Whole
    top1: Percent


@dataclass(frozen=True, kw_only=True)
class ConfusedClasses:
    """How many images of the class ``true`` were predicted to be of the class ``predicted``."""

    true: str
    predicted: str
    images: Whole


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """Summary of the details in the run's ``folder``: of the evaluation, or the best validation.

    Of the weights' moving average where there is one. images, mistakes: of all classes.
    worst_classes, best_classes, confused: five of each at most.
    """

    folder: str | None = None
    images: Whole | None = None
    mistakes: Whole | None = None
    worst_classes: tuple[ClassAccuracy, ...] | None = None
    best_classes: tuple[ClassAccuracy, ...] | None = None
    confused: tuple[ConfusedClasses, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TimeResults:
    """Where the time went, in seconds."""

    total: Measured | None
    train: Measured | None = None
    validation: Measured | None = None
    first_step: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured.

    validation_set: identifies the validation images: the first 16 digits of a SHA-256 over their
    names. weights_sha256: of the file of the weights that were evaluated.
    """

    train: TrainResults
    validation: ValidationResults
    validation_ema: ValidationResults
    best: Top1AtStep = Top1AtStep()
    last: Top1AtStep = Top1AtStep()
    evaluated: EvaluatedWeights = EvaluatedWeights()
    evaluation: EvaluationResults = EvaluationResults()
    validation_set: str | None = None
    weights_sha256: str | None = None
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
    throttle_reasons: Shares | None = None
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
    """What the run ran on. ended_at: when the report was made. command: its command line."""

    python: str | None
    torch: str | None
    torchvision: str | None
    dali: str | None
    apex: str | None = None
    cuda: str | None
    cudnn: Version | None
    driver: str | None
    devices: tuple[Device, ...] | None
    cpu: str | None
    container: str | None
    git_commit: str | None
    ended_at: Time | None = None
    command: str | None = None

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


def cores_text(cpu: str | None, num_processes: int) -> str:
    """Return ``2 CPU cores`` of ``environment.cpu``, which all processes of a CPU run share."""
    cores = re.search(r"(\d+) usable cores", cpu or "")
    text = "the CPU" if cores is None else counted(int(cores[1]), "CPU core")
    return text if num_processes == 1 else f"{num_processes} processes on {text}"


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What ran, on what, what was measured, how it compares: the content of ``report.json``.

    config: the resolved configuration, section -> key -> value. warnings: those that the console
    printed, each once. classes: the class names in the order of the model's outputs; null if
    unknown.
    """

    name: RunNames
    config: Config
    environment: Environment
    results: Results
    telemetry: Telemetry
    published: tuple[PublishedComparison, ...]
    exit: Exit
    warnings: tuple[str, ...] = ()
    schema_version: int = 1
    classes: tuple[str, ...] | None = None

    @property
    def ran_on(self) -> str:
        """What the run used: ``8 x Tesla V100-SXM2-16GB``, or ``2 CPU cores``."""
        platform, environment = self.config["platform"], self.environment
        count = platform["num_devices"] * platform["num_nodes"]
        if platform["device"] != "cpu":
            names = ", ".join(environment.device_names)
            return f"{count} x {names or platform['device']}"
        return cores_text(environment.cpu, count)

    @property
    def devices_text(self) -> str:
        """What the run used, with the processor's name if that is the CPU."""
        if self.config["platform"]["device"] != "cpu" or self.environment.cpu is None:
            return self.ran_on
        return f"{self.ran_on} ({self.environment.cpu.rpartition(', ')[0]})"

    @property
    def title(self) -> str:
        """What ran, as configured for which platform, and on what it ran."""
        name = self.name
        return f"{name.model} {name.precision}, configuration {name.platform}, run on {self.ran_on}"


@cache
def section_fields(section: Any) -> tuple[tuple[Field[Any], Any, bool], ...]:
    """Return a section's fields, each with its type besides null and whether it may be null."""
    hints = get_type_hints(section, include_extras=True)
    found = []
    for entry in fields(section):
        kind, nullable = hints[entry.name], False
        if get_origin(kind) in (Union, UnionType):
            (kind,) = (each for each in get_args(kind) if each is not NoneType)
            nullable = True
        found.append((entry, kind, nullable))
    return tuple(found)


def to_json(section: Any) -> Any:
    """Return a report, or a section of one, as plain values for JSON."""
    return finite(asdict(section, dict_factory=_json_object))


def _json_object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(items)
    content.update(content.pop("other_topk", {}))
    return content


def write_report(report: RunReport, folder: Path) -> Path:
    """Write ``report.json`` into ``folder`` atomically; return its path.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    path = folder / REPORT_NAME
    write_atomically(path, json.dumps(to_json(report), indent=2, allow_nan=False) + "\n")
    return path
