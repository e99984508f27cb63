"""Finished runs in their folders: finding reports, and reading and checking one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.core.units import other_topk, printable
from image_classification.reporting.figures import measured
from image_classification.reporting.report import (
    MAX_NUMBER,
    REPORT_NAME,
    Count,
    RunReport,
    Whole,
    section_fields,
    without_null,
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


def read_run(path: Path) -> RecordedRun:
    """Read a run: its folder, or its ``report.json``, of any origin.

    Raises:
        WorkspaceError: no such file, too large, not JSON, of another schema version, or damaged;
            the message names file and key.
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
    report = _read_report(file, where)
    stated = report.environment.ended_at
    if stated is None:
        ended_at = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    else:
        ended_at = datetime.fromisoformat(stated).astimezone(timezone.utc)
    return RecordedRun(file, report, measured(report), ended_at, stated is not None)


def _read_report(file: Path, where: str) -> RunReport:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != 1:
            raise WorkspaceError(
                f"{where} has schema version {printable(str(version))[:40]}, this release reads "
                "1; use the release that wrote it"
            )
        report: RunReport = _parse_object(RunReport, content, "")
    except OSError as error:
        raise WorkspaceError(
            f"cannot read {where}: {error.strerror or error}; name the folder of a finished run"
        ) from error
    except _DamagedError as error:
        raise WorkspaceError(
            f"{where} is damaged: {error}; run again to write a new one"
        ) from error
    except ValueError as error:
        raise WorkspaceError(
            f"{where} is not JSON ({error}); run again to write a new one"
        ) from error
    except RecursionError as error:
        raise WorkspaceError(f"{where} is not a report: nested too deeply; leave it out") from error
    return report


class _DamagedError(Exception):
    """A key is missing, or its value is not what the schema's type hint says."""


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


def _parse_object(section: Any, value: Any, where: str) -> Any:
    """Return a JSON object as the dataclass ``section``, with text made safe for terminals.

    Keys that this release does not know are left out.
    """
    if not isinstance(value, dict):
        raise _DamagedError(f"{where} is {_shown(value)}, not an object")
    values: dict[str, Any] = {}
    for field, hint in section_fields(section):
        name = f"{where}.{field.name}" if where else field.name
        if field.name == "other_topk":
            values[field.name] = {key: _safe(value[key]) for key in other_topk(value)}
        elif value.get(field.name) is not None:
            values[field.name] = _parse(hint, value[field.name], name)
        elif field.default is MISSING:
            if field.name not in value:
                raise _DamagedError(f"{name} is missing")
            values[field.name] = _parse(hint, None, name)
    return section(**values)


def _parse(hint: Any, value: Any, where: str) -> Any:
    kind = without_null(hint)
    if value is None and kind is not hint:
        return None
    if is_dataclass(kind):
        return _parse_object(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _DamagedError(f"{where} is {_shown(value)}, not a list")
        item = get_args(kind)[0]
        return tuple(_parse(item, each, f"{where}[{at}]") for at, each in enumerate(value))
    if not _fits(kind, value):
        null = "" if kind is hint else " or null"
        raise _DamagedError(f"{where} is {_shown(value)}, not {_words(kind)}{null}")
    if where == "config":
        _check_config(value)
    return _safe(value)


def _check_config(config: dict[str, Any]) -> None:
    for key, section in config.items():
        if not isinstance(section, dict):
            raise _DamagedError(f"config.{printable(key)} is not an object")
    for key, hint in _CONFIG_HINTS.items():
        section, _, name = key.partition(".")
        if name not in config.get(section, {}):
            raise _DamagedError(f"config.{key} is missing")
        _parse(hint, config[section][name], f"config.{key}")


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
    if type(value) is int and abs(value) > MAX_NUMBER:
        return "a number out of range"
    return printable(repr(value))[:40]


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
