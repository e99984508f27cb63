"""What `report compare` says of two folders of runs: as data, on the console."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from image_classification.reporting.regression_folders import FolderComparison
from image_classification.reporting.regression_text import (
    SCHEMA_VERSION,
    comparison_json,
    print_environment,
    print_figures,
    print_regressed,
)


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
