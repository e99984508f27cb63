"""Results of checks, and their output: a terminal's columns, plain lines, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from image_classification.reporting.table import (
    Cell,
    Column,
    Table,
    marked,
    plain_lines,
    print_table,
)

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
_COLUMNS = (Column("status", wrap=False, width=7), Column("name", "label", width=15), Column())
_MEANING = {
    OK: "ready",
    WARN: "ready, with warnings",
    FAIL: "a run would fail here: see the lines marked fail",
}


@dataclass(frozen=True)
class CheckResult:
    """Result of one check, made by `ok`, `warn`, `fail` or `skipped`.

    name: stable, lower case, with hyphens. found: the value with its unit; if skipped, why.
    remedy: what the user can do; "" if there is nothing to do.
    """

    name: str
    status: str
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> CheckResult:
    """Return the result of a check that passed."""
    return CheckResult(name, OK, found)


def warn(name: str, found: str, remedy: str) -> CheckResult:
    """Return a result that a run tolerates but that should be changed."""
    return CheckResult(name, WARN, found, remedy)


def fail(name: str, found: str, remedy: str) -> CheckResult:
    """Return a result with which a run would fail."""
    return CheckResult(name, FAIL, found, remedy)


def skipped(name: str, why: str) -> CheckResult:
    """Return the result of a check that does not apply."""
    return CheckResult(name, SKIPPED, why)


def judge(
    name: str, found: str, value: float, fail_below: float, warn_below: float, remedy: str
) -> CheckResult:
    """Return a failure, a warning or ok, by comparing ``value`` with two limits."""
    if value >= max(fail_below, warn_below):
        return ok(name, found)
    return (fail if value < fail_below else warn)(name, found, remedy)


def overall(results: Iterable[CheckResult]) -> str:
    """Return ``fail`` if any check failed, else ``warn`` if any warned, else ``ok``."""
    statuses = {result.status for result in results}
    return next((status for status in (FAIL, WARN) if status in statuses), OK)


def results_json(results: Sequence[CheckResult]) -> str:
    """Return the documented object: ``schema_version``, ``checks`` and the overall ``status``."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "checks": [dataclasses.asdict(result) for result in results],
        "status": overall(results),
    }
    return json.dumps(content, indent=1)


def _table(result: CheckResult, remedy_label: str) -> Table:
    remedy = f"{remedy_label} {result.remedy}" if result.remedy else ""
    mark = result.status if result.status == SKIPPED else ""
    found = Cell(result.found, mark=mark, detail=remedy, detail_mark="remedy")
    row = (marked(result.status), result.name, found)
    return Table(_COLUMNS, [row], look="bare", head=False)


def result_line(result: CheckResult) -> str:
    """Return one result on one line, for logs and pipes."""
    return plain_lines(_table(result, "| remedy:"), gap=" ")[0]


def print_result(console: Console, result: CheckResult) -> None:
    """Print one result to a terminal, in columns of fixed width."""
    print_table(console, _table(result, "→"))


def verdict(results: Sequence[CheckResult]) -> str:
    """Return the last line: the number of each status and what it means for a run."""
    labels = {OK: "ok", WARN: "warnings", FAIL: "failed", SKIPPED: "skipped"}
    statuses = [result.status for result in results]
    counts = ", ".join(f"{statuses.count(status)} {label}" for status, label in labels.items())
    return f"{counts}: {_MEANING[overall(results)]}"
