"""``report combine``: groups of runs and the ratios between them, as JSON and on the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.text import Text

from image_classification.reporting.compare.combine import (
    Group,
    figure_table,
    inference_table,
)
from image_classification.reporting.compare.identity import run_json
from image_classification.reporting.compare.scaling import Ratio, ratio_table, scalings, speedups
from image_classification.reporting.compare.vendor_table import vendor_row
from image_classification.reporting.figures import figure_of, label_of
from image_classification.reporting.published.verdict import newest, published_table
from image_classification.reporting.table import Table, pairs, print_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Combined:
    """Groups of runs, and the ratios between them."""

    groups: tuple[Group, ...]
    speedups: tuple[Ratio, ...]
    scalings: tuple[Ratio, ...]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Combined:
        """Calculate the ratios between ``groups``."""
        return cls(tuple(groups), tuple(speedups(groups)), tuple(scalings(groups)))


def combined_json(combined: Combined) -> dict[str, Any]:
    """Return the content of ``combined.json``; docs/reports.md describes its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "groups": [_group_json(group, combined.scalings) for group in combined.groups],
        "speedups": [asdict(ratio) for ratio in combined.speedups],
        "scalings": [asdict(ratio) for ratio in combined.scalings],
    }


def _group_json(group: Group, ratios: Sequence[Ratio]) -> dict[str, Any]:
    return {
        "name": asdict(group.report.name),
        "num_devices": group.identity.num_devices,
        "devices": group.device_names,
        "runs": [{**run_json(run), "figures": dict(run.figures)} for run in group.runs],
        "figures": {
            key: {"unit": figure_of(key).unit, **asdict(spread)}
            for key, spread in group.figures.items()
        },
        "published": [{**asdict(entry), "ratio": entry.ratio} for entry in group.published],
        "vendor": vendor_row(group, ratios),
        "warnings": list(group.warnings),
    }


def print_combined(console: Console, combined: Combined, *, vendor: bool) -> None:
    """Print every group's figures and verdicts, then the ratios. vendor: the vendor table too."""
    for group in combined.groups:
        _print_group(console, group)
        if vendor:
            _print(console, "\nVendor table", pairs(vendor_row(group, combined.scalings).items()))
        console.print()
    for title, ratios in (("Speed-up", combined.speedups), ("Weak scaling", combined.scalings)):
        if ratios:
            _print(console, title, ratio_table(ratios))
            for ratio in ratios:
                console.print(Text.assemble((f"{ratio.label}: ", "dim"), ratio.why))
            console.print()


def _print_group(console: Console, group: Group) -> None:
    figures, inference = figure_table(group), inference_table(group)
    if figures.rows:
        _print(console, group.title, figures, group.note)
    else:
        console.print(Text.assemble((group.title, "bold"), f"\n{group.note}"))
    if inference.rows:
        _print(console, "\nInference, means; latency in ms", inference)
    if group.published:
        first = newest(group.published)
        console.print()
        print_table(console, published_table(first))
        for entry in first:
            label = f"{entry.id}, {label_of(entry.figure)}: "
            console.print(Text.assemble((label, "dim"), entry.why))
    for warning in group.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def _print(console: Console, title: str, table: Table, *notes: str) -> None:
    print_table(console, replace(table, title=title, notes=notes))
