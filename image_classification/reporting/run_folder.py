"""Finished runs in their folders: finding reports, and reading and checking one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.core.units import other_topk, printable
from image_classification.reporting.figures import measured
from image_classification.reporting.report import (
    MAX_NUMBER,
    OLD_VERDICTS,
    REPORT_NAME,
    Count,
    RunReport,
    VerdictWord,
    Whole,
    section_fields,
)

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

    tree = os.walk(folder, onerror=refuse)
    found = [Path(parent) / REPORT_NAME for parent, _, files in tree if REPORT_NAME in files]
    if not found:
        raise WorkspaceError(
            f"{printable(str(folder))} holds no {REPORT_NAME}; name a folder that holds runs"
        )
    return sorted(found)


def read_run(path: Path) -> RecordedRun:
    """Read a run: its folder, or its ``report.json``, of any origin.

    Raises:
        WorkspaceError: no such file, too large, not JSON, of another schema version, or damaged;
            the message names file and key.
    """
    where, remedy = printable(str(path)), "name the folder of a finished run"
    try:
        if path.is_dir():
            path = path / REPORT_NAME
            where = printable(str(path))
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise WorkspaceError(f"{where} is not a file; {remedy}")
        if status.st_size > MAX_REPORT_BYTES:
            raise WorkspaceError(
                f"{where} has {status.st_size:,} bytes, no report has more than "
                f"{MAX_REPORT_BYTES:,}; {remedy}"
            )
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkspaceError(f"cannot read {where}: {reason}; {remedy}") from error
    report = _parse_report(content, where)
    ended_at = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    stated = report.environment.ended_at
    if stated is not None:
        ended_at = datetime.fromisoformat(stated).astimezone(timezone.utc)
    return RecordedRun(path, report, measured(report), ended_at, stated is not None)


class _DamagedError(Exception):
    """A key is missing, or its value is not what the schema's type hint says."""


def _parse_report(text: bytes, where: str) -> RunReport:
    try:
        content = json.loads(text.decode("utf-8"))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != 1:
            raise WorkspaceError(
                f"{where} has schema version {printable(str(version))[:40]}, this release reads "
                "1; use the release that wrote it"
            )
        report: RunReport = _parse_section(RunReport, content, "")
    except _DamagedError as error:
        problem = f"damaged: {error}; run again to write a new one"
    except ValueError as error:
        problem = f"not JSON ({error}); run again to write a new one"
    except RecursionError:
        problem = "not a report: nested too deeply; leave it out"
    else:
        return report
    raise WorkspaceError(f"{where} is {problem}")


def _parse_section(section: Any, value: Any, where: str) -> Any:
    """Return a JSON object as the dataclass ``section``, with text made safe for terminals.

    Keys that this release does not know are left out.
    """
    if not isinstance(value, dict):
        raise _DamagedError(f"{where} is {_shown(value)}, not an object")
    values: dict[str, Any] = {}
    for field, kind, nullable in section_fields(section):
        name = f"{where}.{field.name}" if where else field.name
        given = value.get(field.name)
        if field.name == "other_topk":
            values[field.name] = {key: _safe(value[key]) for key in other_topk(value)}
        elif given is not None:
            values[field.name] = _parse(kind, given, name, " or null" if nullable else "")
        elif field.default is MISSING:
            if field.name not in value:
                raise _DamagedError(f"{name} is missing")
            values[field.name] = None if nullable else _parse(kind, None, name)
    return section(**values)


def _parse(kind: Any, value: Any, where: str, or_null: str = "") -> Any:
    if is_dataclass(kind):
        return _parse_section(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _DamagedError(f"{where} is {_shown(value)}, not a list")
        item = get_args(kind)[0]
        return tuple(_parse(item, each, f"{where}[{at}]") for at, each in enumerate(value))
    if kind is VerdictWord and isinstance(value, str):
        value = OLD_VERDICTS.get(value, value)
    words, is_valid = _rule(kind)
    if not is_valid(value):
        raise _DamagedError(f"{where} is {_shown(value)}, not {words}{or_null}")
    if where == "config":
        _check_config(value)
    return _safe(value)


def _rule(kind: Any) -> Any:
    """Return a description of the valid values of this type, and a function that checks one."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[1:]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}", get_args(kind).__contains__
    plain = {str: "text", bool: "true or false", int: "a number", Any: "anything"}
    return plain[kind], lambda value: kind is Any or type(value) is kind


# Settings that the comparison of reports relies on; others may have been added since.
_CONFIG_TYPES: Mapping[str, Any] = {
    "data.path": str,
    "batch.per_device": Count,
    "batch.global": Count,
    "platform.device": str,
    "platform.num_devices": Count,
    "platform.num_nodes": Count,
    "run.seed": Whole,
}


def _check_config(config: dict[str, Any]) -> None:
    for key, section in config.items():
        if not isinstance(section, dict):
            raise _DamagedError(f"config.{printable(key)} is not an object")
    for key, kind in _CONFIG_TYPES.items():
        section, _, name = key.partition(".")
        if name not in config.get(section, {}):
            raise _DamagedError(f"config.{key} is missing")
        _parse(kind, config[section][name], f"config.{key}")


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _safe(item) for key, item in value.items()}
    return [_safe(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "an object"
    if type(value) is int and abs(value) > MAX_NUMBER:
        return "a number out of range"
    return printable(repr(value))[:40]
