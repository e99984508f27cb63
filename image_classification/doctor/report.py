"""What the doctor found, as a table on a terminal, as plain lines elsewhere, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from image_classification.doctor.check import (
    FAIL,
    OK,
    SKIPPED,
    STATUSES,
    WARN,
    Check,
    overall,
)

SCHEMA_VERSION = 1

_STYLES = {OK: "green", WARN: "bold yellow", FAIL: "bold red", SKIPPED: "dim"}
_NAME_WIDTH = 15
_STATUS_WIDTH = 7


def checks_json(checks: Sequence[Check]) -> str:
    """Return the documented object: ``schema_version``, ``checks`` and the overall ``status``."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "checks": [dataclasses.asdict(check) for check in checks],
        "status": overall(checks),
    }
    return json.dumps(content, indent=1)


def check_line(check: Check) -> str:
    """Return one check on one line, for logs and pipes."""
    line = f"{check.status:<{_STATUS_WIDTH}} {check.name:<{_NAME_WIDTH}} {check.found}"
    return f"{line} | remedy: {check.remedy}" if check.remedy else line


def print_check(console: Console, check: Check) -> None:
    """Print one check to a terminal: fixed columns, so that each can be printed as it is made."""
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(width=_STATUS_WIDTH, no_wrap=True)
    row.add_column(width=_NAME_WIDTH, no_wrap=True)
    row.add_column(ratio=1, overflow="fold")
    style = _STYLES[check.status]
    found = Text(check.found, style="dim" if check.status == SKIPPED else "")
    if check.remedy:
        found.append(f"\n→ {check.remedy}", style="cyan")
    row.add_row(Text(check.status, style=style), Text(check.name, style="bold"), found)
    console.print(row)


def verdict(checks: Sequence[Check]) -> str:
    """Return the last line: how many of each."""
    counts = {status: sum(c.status == status for c in checks) for status in STATUSES}
    parts = (
        f"{counts[OK]} ok",
        f"{counts[WARN]} to look at",
        f"{counts[FAIL]} failed",
        f"{counts[SKIPPED]} skipped",
    )
    end = {
        OK: "ready",
        WARN: "ready, with what is marked warn",
        FAIL: "a run would break here: see what is marked fail",
    }
    return f"{', '.join(parts)}: {end[overall(checks)]}"
