"""A finished run, read from a file that may be of anybody's making."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import RunReport
from image_classification.reporting.measured import measured
from image_classification.reporting.plain import printable
from image_classification.reporting.report_shape import NAMES, problem_of
from image_classification.reporting.summary import REPORT_NAME, read_report

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
