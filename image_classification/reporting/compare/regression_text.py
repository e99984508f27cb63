"""What `report compare` says: as data, on the console.

What `report compare` says of two folders of runs: as data, on the console.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from image_classification.reporting.compare.identity import Identity
from image_classification.reporting.compare.regression import (
    Change,
    Comparison,
    FolderComparison,
    short_commit,
)
from image_classification.reporting.figures import label_of, value_text
from image_classification.reporting.run_folder import RecordedRun
from image_classification.reporting.table import print_titled

SCHEMA_VERSION = 1

STYLES = {
    "ok": "green",
    "improved": "bold cyan",
    "regressed": "bold red",
    "not measured": "dim",
}


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/reports.md has its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": asdict(comparison.new.report.name),
        "num_devices": comparison.new.num_devices,
        "old": {**run_json(comparison.old), "runs": comparison.old_runs},
        "new": {**run_json(comparison.new), "runs": comparison.new_runs},
        "changes": [asdict(change) for change in comparison.changes],
        "environment": {
            key: {"old": old, "new": new} for key, (old, new) in comparison.environment.items()
        },
        "regressed": [change.figure for change in comparison.regressed],
    }


def run_json(run: RecordedRun) -> dict[str, Any]:
    """Return which run it was."""
    return {
        "path": str(run.path),
        "seed": run.seed,
        "ended_at": run.ended_at.isoformat(timespec="seconds"),
        "ended_at_is_file_time": not run.time_is_known,
    }


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print figures, environments and the outcome."""
    print_figures(console, comparison)
    print_environment(console, comparison.environment)
    print_regressed(console, comparison)
    if not comparison.regressed:
        console.print("No figure regressed.")


def print_figures(console: Console, comparison: Comparison) -> None:
    """Print every figure, and which runs they are of."""
    old, new = comparison.old, comparison.new
    table = Table()
    table.add_column("figure")
    for head in ("old", "new", "change"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for change in comparison.changes:
        table.add_row(
            label_of(change.figure),
            value_text(change.figure, change.old),
            value_text(change.figure, change.new),
            change_text(change),
            Text(change.verdict, style=STYLES[change.verdict]),
        )
    note = f"old: {_which(old, comparison.old_runs)}\nnew: {_which(new, comparison.new_runs)}\n"
    print_titled(console, Identity.of(new).text, table, note)


def _which(run: RecordedRun, runs: int) -> str:
    of = f"median of {runs} runs, the newest " if runs > 1 else ""
    return f"{of}{run.label}, {run.time_text}, seed {run.seed}"


def print_environment(console: Console, environment: Mapping[str, tuple[str, str]]) -> None:
    """Print where two environments differ: key -> (old, new)."""
    if environment:
        print_titled(console, "Environments differ", _environment_table(environment))
    else:
        console.print("The environments are the same.")


def print_regressed(console: Console, comparison: Comparison) -> None:
    """Print what got worse, one figure a line."""
    for change in comparison.regressed:
        console.print(Text(f"{label_of(change.figure)}: {reason(change)}", style="bold red"))


def change_text(change: Change) -> str:
    """The change with its sign and unit."""
    if change.change is None:
        return "-"
    if change.unit == "points":
        return f"{change.change:+.2f} points"
    return f"{change.change:+.1f} %"


def reason(change: Change) -> str:
    """Why a change is a regression, in words."""
    unit = "points" if change.unit == "points" else "%"
    return f"{change_text(change)}, worse by more than {change.threshold:g} {unit}"


def _environment_table(environment: Mapping[str, tuple[str, str]]) -> Table:
    table = Table()
    table.add_column("what", no_wrap=True)
    table.add_column("old", overflow="fold")
    table.add_column("new", overflow="fold")
    for key, (old, new) in environment.items():
        if key == "git_commit":
            old, new = short_commit(old), short_commit(new)
        table.add_row(key, Text(old), Text(new))
    return table


def folders_json(found: FolderComparison) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/reports.md has its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "old": str(found.old),
        "new": str(found.new),
        "comparisons": [comparison_json(comparison) for comparison in found.comparisons],
        "not_compared": list(found.not_compared),
        "left_out": list(found.left_out),
        "regressed": found.regressed,
    }


def print_folders(console: Console, found: FolderComparison) -> None:
    """Print every pair of runs, the environments once where all have the same, and the outcome."""
    environments = [comparison.environment for comparison in found.comparisons]
    once = all(environment == environments[0] for environment in environments)
    for comparison in found.comparisons:
        print_figures(console, comparison)
        if not once:
            print_environment(console, comparison.environment)
        if comparison.regressed:
            print_regressed(console, comparison)
            console.print()
    if once and environments:
        print_environment(console, environments[0])
    for head, lines in (("not compared: ", found.not_compared), ("left out: ", found.left_out)):
        for line in lines:
            console.print(Text.assemble((head, "bold yellow"), line))
    if found.regressed:
        console.print(Text(f"Regressed: {'; '.join(found.regressed)}", style="bold red"))
    else:
        count = len(found.comparisons)
        console.print(f"No figure of {count} {'run' if count == 1 else 'runs'} regressed.")
