"""Assemble the report of a run: what was measured, on what, and how it compares."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args, get_origin

from image_classification.config.keys import to_dict
from image_classification.config.schema import RunConfig
from image_classification.core.errors import EXIT_DONE
from image_classification.core.host import (
    REVISION_VARIABLE,
    container_kind,
    container_text,
    read_mounts,
)
from image_classification.core.program import whole_command
from image_classification.core.types import DevicesFound
from image_classification.core.units import finite, other_topk
from image_classification.reporting.published.verdict import compare
from image_classification.reporting.report import (
    STATUSES,
    Environment,
    Exit,
    Results,
    RunReport,
    Telemetry,
    section_fields,
)

_MAX_WARNINGS = 20


def build_report(
    config: RunConfig,
    *,
    devices: DevicesFound,
    environment: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    telemetry: Mapping[str, Any] | None = None,
    exit_code: int = EXIT_DONE,
    exit_message: str = "",
    warnings: Sequence[str] = (),
    classes: Sequence[str] | None = None,
) -> RunReport:
    """Assemble the report of a run.

    devices: those of this node, for the comparison with published figures. environment: what only
    the engine knows (torch, torchvision, dali, cuda, cudnn, driver, devices); the rest is
    collected here. results, telemetry: those sections of report.json as far as measured; results
    None for a run that ended before it measured anything. warnings: those printed during the run.
    classes: the class names in the order of the model's outputs, None if unknown.

    Raises:
        ValueError: a key that the report's schema does not have, or an exit code without a status.
    """
    if exit_code not in STATUSES:
        raise ValueError(f"no status for exit code {exit_code}")
    report = RunReport(
        name=config.names,
        config=finite(to_dict(config)),
        environment=complete(Environment, {**host_environment(), **environment}, "environment"),
        results=complete(Results, results or {}, "results"),
        telemetry=complete(Telemetry, telemetry or {}, "telemetry"),
        published=(),
        exit=Exit(status=STATUSES[exit_code], code=exit_code, message=exit_message),
        warnings=_listed(warnings),
        classes=None if classes is None else tuple(classes),
    )
    return replace(report, published=tuple(compare(config, report, devices)))


def _listed(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return each warning once; of very many only the first."""
    unique = tuple(dict.fromkeys(warnings))
    more = len(unique) - _MAX_WARNINGS
    return unique if more <= 0 else (*unique[:_MAX_WARNINGS], f"and {more} more in metrics.jsonl")


def complete(section: Any, measured: Mapping[str, Any], where: str) -> Any:
    """Return what was measured as ``section``, a dataclass of the schema.

    Everything else is null, and so are NaN and infinities.

    Raises:
        ValueError: a key that the section does not have.
    """
    values = dict(measured)
    kinds = {
        field.name: Any if nullable and is_dataclass(kind) and not values.get(field.name) else kind
        for field, kind, nullable in section_fields(section)
    }
    if "other_topk" in kinds:
        values["other_topk"] = {key: values.pop(key) for key in other_topk(values)}
    unknown = values.keys() - kinds
    if unknown:
        raise ValueError(f"{where} has no key {', '.join(sorted(unknown))}")
    for name, kind in kinds.items():
        values[name] = _complete_value(kind, values.get(name), f"{where}.{name}")
    return section(**values)


def _complete_value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return complete(kind, value or {}, where)
    if get_origin(kind) is tuple and value is not None:
        return tuple(_complete_value(get_args(kind)[0], each, where) for each in value)
    return finite(value)


def host_environment() -> dict[str, Any]:
    """Return what is known without torch: python, cpu, container, git_commit, ended_at, command.

    ended_at is now, in UTC as ISO 8601: a report is made at the end of its run.
    """
    kind = container_kind(os.environ, read_mounts())
    return {
        "python": platform.python_version(),
        "cpu": cpu_name(Path("/proc/cpuinfo")),
        "container": container_text(kind, os.environ) or None,
        "git_commit": git_commit(Path(__file__).resolve().parents[2], os.environ),
        "ended_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": whole_command(),
    }


def cpu_name(cpuinfo: Path) -> str:
    """Return the processor's model and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break
    # A container or Slurm often grants fewer cores than the machine has.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {usable} usable cores"


def git_commit(checkout: Path, environ: Mapping[str, str]) -> str | None:
    """Return the commit of ``checkout``, with ``-dirty`` if files differ; None if unknown.

    Without ``.git`` in ``checkout`` it is the commit that the image was built from, by
    ``environ``.
    """
    # For a package installed inside another repository, that repository's commit says nothing.
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
