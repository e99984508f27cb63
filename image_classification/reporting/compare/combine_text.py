"""What `report combine` says: as data, on the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from image_classification.core.units import number, percent, rate
from image_classification.reporting.compare.combine import Group, Judged
from image_classification.reporting.compare.identity import device_names
from image_classification.reporting.compare.scaling import Ratio, scalings, speedups
from image_classification.reporting.compare.vendor_table import vendor_row
from image_classification.reporting.figures import (
    figure_of,
    label_of,
    plain_spread,
    plain_value,
    split_batch,
    unit_text,
    value_text,
)
from image_classification.reporting.table import print_titled

SCHEMA_VERSION = 1

VERDICT_STYLES = {
    "reproduced": "bold green",
    "better": "bold cyan",
    "short": "bold red",
    "not-comparable": "dim",
}


@dataclass(frozen=True)
class Combined:
    """Groups of runs, and what they say together."""

    groups: tuple[Group, ...]
    speedups: tuple[Ratio, ...]
    scalings: tuple[Ratio, ...]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Combined:
        """Work out the ratios between ``groups``."""
        return cls(tuple(groups), tuple(speedups(groups)), tuple(scalings(groups)))


def combined_json(combined: Combined) -> dict[str, Any]:
    """Return ``combined.json``; docs/reports.md has its keys."""
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
        "devices": device_names(group.first),
        "runs": [
            {
                "path": str(run.path),
                "seed": run.seed,
                "ended_at": run.ended_at.isoformat(timespec="seconds"),
                "ended_at_is_file_time": not run.time_is_known,
                "figures": dict(run.figures),
            }
            for run in group.runs
        ],
        "figures": {
            key: {"unit": figure_of(key).unit, **asdict(spread)}
            for key, spread in group.figures.items()
        },
        "published": [{**asdict(entry), "ratio": entry.ratio} for entry in group.published],
        "vendor": vendor_row(group, ratios),
        "warnings": list(group.warnings),
    }


def print_combined(console: Console, combined: Combined, *, vendor: bool) -> None:
    """Print every group's figures and verdicts, then the ratios. vendor: its table as well."""
    for group in combined.groups:
        note = f"{device_names(group.first)}; {seeds_text(group)}"
        rows, served = figure_rows(group), inference_rows(group)
        if rows:
            print_titled(console, title_of(group), _text_table(FIGURE_HEADS, rows, 2), note)
        else:
            console.print(Text.assemble((title_of(group), "bold"), f"\n{note}"))
        if served:
            table = _text_table(INFERENCE_HEADS, served, 0)
            print_titled(console, "\nInference, means; latency in ms", table)
        if group.published:
            table = _published_table(group.newest_published)
            print_titled(console, "\nAgainst the published figures", table)
            for entry in group.newest_published:
                label = f"{entry.id}, {published_label(entry.figure)}: "
                console.print(Text.assemble((label, "dim"), entry.why))
        for warning in group.warnings:
            console.print(Text.assemble(("warning: ", "bold yellow"), warning))
        if vendor:
            print_titled(console, "\nVendor table", _vendor_table(group, combined.scalings))
        console.print()
    for title, ratios in (
        ("Speed-up", combined.speedups),
        ("Weak scaling", combined.scalings),
    ):
        if ratios:
            print_titled(console, title, _ratio_table(ratios))
            for ratio in ratios:
                label = f"{ratio_label(ratio)}: "
                console.print(Text.assemble((label, "dim"), ratio.why))
            console.print()


def title_of(group: Group) -> str:
    """Names, devices and how many runs."""
    count = "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
    return f"{group.identity.text}, {count}"


def seeds_text(group: Group) -> str:
    """The seeds of a group in words."""
    seeds = [str(run.seed) for run in group.runs]
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}"


FIGURE_HEADS = ("figure", "unit", "mean", "± std", "least", "most", "n")
INFERENCE_HEADS = ("batch", "images/s", "± std", "mean", "p50", "p90", "p95", "p99", "n")


def figure_rows(group: Group) -> list[tuple[str, ...]]:
    """Return the cells of every figure but those of one batch size, under `FIGURE_HEADS`."""
    return [
        (
            label_of(key),
            unit_text(key),
            plain_value(key, spread.mean),
            plain_spread(key, spread.std),
            plain_value(key, spread.least if spread.n > 1 else None),
            plain_value(key, spread.most if spread.n > 1 else None),
            str(spread.n),
        )
        for key, spread in group.figures.items()
        if split_batch(key)[1] is None
    ]


def inference_rows(group: Group) -> list[tuple[str, ...]]:
    """Return the means of every batch size, latency in ms, under `INFERENCE_HEADS`."""
    batches = {batch for key in group.figures if (batch := split_batch(key)[1]) is not None}
    rows = []
    for batch in sorted(batches):
        speed = group.figures.get(f"inference_images_per_s_batch_{batch}")
        latencies = (
            group.figures.get(f"latency_ms_{name}_batch_{batch}") for name in INFERENCE_HEADS[3:8]
        )
        rows.append(
            (
                str(batch),
                rate(None if speed is None else speed.mean),
                number(None if speed is None else speed.std, 1),
                *(number(None if figure is None else figure.mean) for figure in latencies),
                "-" if speed is None else str(speed.n),
            )
        )
    return rows


def _text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> Table:
    """Build a table of cells; the first ``texts`` columns are words, the others numbers."""
    table = Table()
    for at, head in enumerate(heads):
        numbers = at >= texts
        table.add_column(head, justify="right" if numbers else "left", no_wrap=numbers)
    for row in rows:
        table.add_row(*row)
    return table


def published_label(figure: str) -> str:
    """What a published figure is called in tables; its key where there is no other name."""
    return label_of(figure)


def published_text(entry: Judged, value: float | None) -> str:
    """A published or measured value with its unit."""
    return value_text(entry.figure, value)


def published_with_spread(entry: Judged) -> str:
    """The published value with its printed spread."""
    text = published_text(entry, entry.published)
    return text if entry.spread is None else f"{text} ± {number(entry.spread)}"


def _published_table(entries: Sequence[Judged]) -> Table:
    table = Table()
    table.add_column("figure")
    for head in ("published", "measured", "ratio"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for entry in entries:
        table.add_row(
            published_label(entry.figure),
            published_with_spread(entry),
            published_text(entry, entry.measured),
            number(entry.ratio, 3),
            Text(entry.verdict, style=VERDICT_STYLES[entry.verdict]),
        )
    return table


def _vendor_table(group: Group, ratios: Sequence[Ratio]) -> Table:
    table = Table(show_header=False)
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, text in vendor_row(group, ratios).items():
        table.add_row(name, Text(text))
    return table


def ratio_label(ratio: Ratio) -> str:
    """Which two groups, in words: ``resnet50 DGX1V, AMP over FP32``."""
    of, over = ratio.of, ratio.over
    if ratio.kind == "speedup":
        devices = "1 device" if of.num_devices == 1 else f"{of.num_devices} devices"
        return f"{of.model} {of.platform}, {devices}, {of.precision} over {over.precision}"
    return f"{of.model} {of.precision} {of.platform}, {over.num_devices} -> {of.num_devices}"


def ratio_text(ratio: Ratio, value: float | None) -> str:
    """A speed-up as a factor, an efficiency in percent."""
    return percent(value) if ratio.kind == "scaling" else number(value)


def _ratio_table(ratios: Sequence[Ratio]) -> Table:
    table = Table()
    table.add_column("of")
    for head in ("measured", "published"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for ratio in ratios:
        table.add_row(
            ratio_label(ratio),
            ratio_text(ratio, ratio.value),
            ratio_text(ratio, ratio.published),
            Text(ratio.verdict, style=VERDICT_STYLES[ratio.verdict]),
        )
    return table
