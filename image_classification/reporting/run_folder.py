"""Finished runs in their folders: finding reports, and reading one with its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.figures import measured
from image_classification.reporting.report import REPORT_NAME, RunReport, read_report

MAX_REPORT_BYTES = 16 * 2**20
"""Size of the largest report that is read; a real one has some ten kilobytes."""


@dataclass(frozen=True)
class RecordedRun:
    """The checked report of a run.

    path: of its ``report.json``. figures: see `measured`. ended_at: in UTC; the file's own time
    where the report has none, then time_is_known is False.
    """

    path: Path
    report: RunReport
    figures: Mapping[str, float]
    ended_at: datetime
    time_is_known: bool

    @property
    def label(self) -> str:
        """The run's name in tables: that of its folder."""
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
        """Whether it ran to its end."""
        return self.report.exit.code == 0

    @property
    def diverged(self) -> bool:
        """Whether it ended because the loss was not finite."""
        return self.report.exit.code == EXIT_DIVERGED

    @property
    def time_text(self) -> str:
        """When it ended, to the minute; with ``~`` if that is the file's own time."""
        mark = "" if self.time_is_known else "~"
        return f"{mark}{self.ended_at:%Y-%m-%d %H:%M}"


def read_run(path: Path) -> RecordedRun:
    """Read a run: its folder, or its ``report.json``.

    Raises:
        WorkspaceError: no such file, too large, or not a sound report; the message names file
            and key.
    """
    try:
        file = path / REPORT_NAME if path.is_dir() else path
        status = file.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkspaceError(
            f"cannot read {printable(str(path))}: {reason}; name the folder of a finished run"
        ) from error
    where = printable(str(file))
    if not file.is_file():
        raise WorkspaceError(f"{where} is not a file; name the folder of a finished run")
    if status.st_size > MAX_REPORT_BYTES:
        raise WorkspaceError(
            f"{where} has {status.st_size:,} bytes, no report has more than {MAX_REPORT_BYTES:,}; "
            "name the folder of a finished run"
        )
    report = read_report(file)
    stated = report.environment.ended_at
    if stated is None:
        ended_at = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    else:
        ended_at = datetime.fromisoformat(stated).astimezone(timezone.utc)
    return RecordedRun(file, report, measured(report), ended_at, stated is not None)


def find_reports(folder: Path) -> list[Path]:
    """Return every ``report.json`` below ``folder``, sorted; links to folders are not followed.

    Raises:
        WorkspaceError: no such folder, it cannot be listed, or it has no report.
    """

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
        raise WorkspaceError(
            f"{printable(str(folder))} holds no {REPORT_NAME}; name a folder that holds runs"
        )
    return sorted(found)
