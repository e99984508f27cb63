"""``report.json``: every key of its schema, null where nothing was measured.

What every ``report.json`` looks like, to tell a damaged or foreign one before it is used.

A finished run, read from a file that may be of anybody's making.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from image_classification.config.explain import to_dict
from image_classification.config.schema import RunConfig
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USER,
    WorkspaceError,
)
from image_classification.core.files import write_atomically
from image_classification.core.host import (
    REVISION_VARIABLE,
    container_kind,
    container_text,
    read_mounts,
)
from image_classification.core.types import DevicesFound, RunReport
from image_classification.core.units import finite, other_topk, printable
from image_classification.reporting.figures import measured
from image_classification.reporting.published.verdict import compare

REPORT_NAME = "report.json"

STATUSES = {
    EXIT_DONE: "done",
    EXIT_BUG: "bug",
    EXIT_USER: "user error",
    EXIT_DIVERGED: "diverged",
    EXIT_STOPPED: "stopped",
}

_VALIDATION = {"top1": None, "top5": None, "loss": None, "images": None}
_RESULTS: dict[str, Any] = {
    "train": {
        "images_per_s": None,
        "images_per_s_per_device": None,
        "step_time_s": {"p50": None, "p95": None, "p99": None},
        "data_wait_fraction": None,
        "epochs": None,
        "steps": None,
        "images": None,
    },
    "validation": _VALIDATION,
    "validation_ema": _VALIDATION,
    "target": {"stop_at_top1": None, "top1": None, "epoch": None, "step": None, "time_s": None},
    "starts": None,
    "inference": None,
    "data": {"images_per_s": None},
    "time_s": {"total": None, "train": None, "validation": None, "first_step": None},
}
_INFERENCE = {
    "batch": None,
    "images_per_s": None,
    "latency_ms": {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None},
}
_TELEMETRY = {"devices": None, "energy_j": None, "images_per_joule": None, "source": None}
_TELEMETRY_DEVICE = {
    "name": None,
    "power_w_mean": None,
    "power_w_max": None,
    "energy_j": None,
    "memory_peak_bytes": None,
    "utilization_mean": None,
    "temperature_c_max": None,
    "throttled": None,
    "throttle_reasons": None,
    "clock_mhz_mean": None,
    "window_s": None,
    "samples": None,
    "source": None,
}
_ENVIRONMENT = {
    "python": None,
    "torch": None,
    "torchvision": None,
    "dali": None,
    "apex": None,
    "cuda": None,
    "cudnn": None,
    "driver": None,
    "devices": None,
    "cpu": None,
    "container": None,
    "git_commit": None,
    "ended_at": None,
}


def build_report(
    config: RunConfig,
    *,
    devices: DevicesFound,
    environment: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    telemetry: Mapping[str, Any] | None = None,
    exit_code: int = EXIT_DONE,
    exit_message: str = "",
) -> RunReport:
    """Assemble the report of a run.

    devices: what this node has, for the comparison with published figures. environment: what only
    the engine can know (torch, torchvision, dali, cuda, cudnn, driver, devices); the rest is
    collected here. results: that section of report.json as far as it was measured; None for a
    run that ended before it measured anything.

    Raises:
        ValueError: a key the report's schema does not have, or an exit code without a status.
    """
    if exit_code not in STATUSES:
        raise ValueError(f"no status for exit code {exit_code}")
    measured = fill_results(results or {})
    sensed = _fill_telemetry(telemetry or {})
    published = compare(config, measured, devices, telemetry=sensed, environment=environment)
    return RunReport(
        name=asdict(config.names),
        config=finite(to_dict(config)),
        environment=_fill(_ENVIRONMENT, {**host_environment(), **environment}, "environment"),
        results=measured,
        telemetry=sensed,
        published=published,
        exit={"status": STATUSES[exit_code], "code": exit_code, "message": exit_message},
    )


def fill_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Complete ``results`` with nulls for what was not measured; NaN becomes null.

    Raises:
        ValueError: a key the report's schema does not have.
    """
    validations = {
        section: _VALIDATION | dict.fromkeys(other_topk(results.get(section) or {}))
        for section in ("validation", "validation_ema")
    }
    filled = _fill(_RESULTS | validations, results, "results")
    if filled["inference"] is not None:
        filled["inference"] = [
            _fill(_INFERENCE, row, "results.inference") for row in filled["inference"]
        ]
    return filled


def _fill_telemetry(telemetry: Mapping[str, Any]) -> dict[str, Any]:
    filled = _fill(_TELEMETRY, telemetry, "telemetry")
    if filled["devices"] is not None:
        filled["devices"] = [
            _fill(_TELEMETRY_DEVICE, row, "telemetry.devices") for row in filled["devices"]
        ]
    return filled


def _fill(template: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    unknown = set(given) - set(template)
    if unknown:
        raise ValueError(f"{where} has no key {', '.join(sorted(unknown))}")
    filled = {}
    for key, empty in template.items():
        value = given.get(key)
        if isinstance(empty, Mapping):
            filled[key] = _fill(empty, value or {}, f"{where}.{key}")
        else:
            filled[key] = finite(value)
    return filled


def host_environment() -> dict[str, Any]:
    """What can be known without torch: python, cpu, container, git_commit, ended_at.

    ended_at is now, in UTC as ISO 8601: a report is made at its run's end.
    """
    kind = container_kind(os.environ, read_mounts())
    return {
        "python": platform.python_version(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "container": container_text(kind, os.environ) or None,
        "git_commit": git_commit(Path(__file__).resolve().parents[2], os.environ),
        "ended_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu(cpuinfo: Path) -> str:
    name = platform.processor() or platform.machine()
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break
    # Cores this process may use; a container or Slurm often grants fewer than there are.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {usable} usable cores"


def git_commit(checkout: Path, environ: Mapping[str, str]) -> str | None:
    """Commit of ``checkout``, with ``-dirty`` when files differ; else the image's; None if unknown.

    environ: says which commit the image was built from, for a ``checkout`` without ``.git``.
    """
    # Installed into an environment inside some other repository, that one's commit says nothing.
    if not (checkout / ".git").exists():
        return environ.get(REVISION_VARIABLE) or None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def write_report(report: RunReport, folder: Path) -> Path:
    """Write ``report.json`` into ``folder`` at once or not at all; return its path.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    path = folder / REPORT_NAME
    content = json.dumps(finite(asdict(report)), indent=2, allow_nan=False) + "\n"
    write_atomically(path, content)
    return path


def read_report(path: Path) -> RunReport:
    """Read a ``report.json`` back.

    Raises:
        WorkspaceError: missing, not JSON, or of another schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkspaceError(
            f"cannot read {path}: {error.strerror or error}; name the folder of a finished run"
        ) from error
    except ValueError as error:
        raise WorkspaceError(f"{path} is not JSON ({error}); run again to write it anew") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != 1:
        raise WorkspaceError(
            f"{path} has schema version {version}, this release reads 1; use the release it is of"
        )
    names = {entry.name for entry in fields(RunReport)}
    if set(content) != names:
        odd = ", ".join(sorted(set(content) ^ names))
        raise WorkspaceError(f"{path} is not a whole report ({odd}); run again to write it anew")
    return RunReport(**content)


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


_VALIDATION_report_shape = {
    "top1": _PERCENT,
    "top5": _PERCENT,
    "loss": _MEASURED,
    "images": _MEASURED,
}
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
        "validation": _VALIDATION_report_shape,
        "validation_ema": _VALIDATION_report_shape,
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


MAX_REPORT_BYTES = 16 * 2**20
"""Largest report that is read; a real one has some ten kilobytes."""

_LONGEST_MESSAGE = 500


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
        report = _checked(file)
    except WorkspaceError as error:
        raise WorkspaceError(printable(error.message)[:_LONGEST_MESSAGE]) from error
    except RecursionError as error:
        raise WorkspaceError(f"{where} is not a report: nested too deeply; leave it out") from error
    stated = _time(report.environment.get("ended_at"))
    ended_at = stated or datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return RecordedRun(file, report, measured(report), ended_at, stated is not None)


def _checked(file: Path) -> RunReport:
    report = read_report(file)
    problem = problem_of(vars(report))
    if problem is not None:
        raise WorkspaceError(f"{file} is damaged: {problem}; run again to write it anew")
    cleaned = {key: _clean(value) for key, value in vars(report).items()}
    cleaned["name"] = {key: cleaned["name"][key] for key in NAMES}
    return replace(report, **cleaned)


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
