"""``report.json``: every key of its schema, null where nothing was measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from image_classification.config.schema import RunConfig
from image_classification.config.serialise import to_dict
from image_classification.core.container import (
    REVISION_VARIABLE,
    container_kind,
    container_text,
)
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USER,
    WorkspaceError,
)
from image_classification.core.mounts import read_mounts
from image_classification.core.types import DevicesFound, RunReport
from image_classification.reporting.files import write_atomically
from image_classification.reporting.plain import finite, other_topk
from image_classification.reporting.published import compare

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
