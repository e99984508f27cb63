"""What `report history` says: as data, on the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from image_classification.reporting.history import Entry, Flag, History, Line
from image_classification.reporting.measured import label_of, value_text
from image_classification.reporting.plain import number, rate
from image_classification.reporting.regression import environment_of
from image_classification.reporting.regression_text import reason, run_json

SCHEMA_VERSION = 1

_HEADLINES = ("top1", "train_images_per_s", "data_images_per_s")
_SHOWN_VERSIONS = ("container", "driver", "cuda", "torch", "dali", "git_commit")
_COMMIT_DIGITS = 8


def history_json(history: History) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/reports.md has its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "lines": [_line_json(line) for line in history.lines],
        "left_out": list(history.left_out),
        "regressed": [line.identity.text for line in history.regressed],
    }


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "name": asdict(line.identity),
        "settings": list(line.settings),
        "regressed": line.regressed,
        "runs": [
            {
                **run_json(entry.run),
                "status": entry.run.report.exit["status"],
                "figures": dict(entry.run.figures),
                "environment": environment_of(entry.run),
                "flags": [
                    {
                        **asdict(flag.change),
                        "against": flag.against,
                        "earlier": str(flag.earlier.path),
                    }
                    for flag in entry.flags
                ],
            }
            for entry in line.entries
        ],
    }


def print_history(console: Console, history: History) -> None:
    """Print every line as a table, what is flagged below it, and the outcome."""
    for line in history.lines:
        console.print(_table(line))
        for entry in line.entries:
            for flag in entry.flags:
                style = "bold red" if entry is line.latest else "yellow"
                console.print(Text(f"{entry.run.label}, {flag_text(flag)}", style=style))
        console.print()
    for reason_left_out in history.left_out:
        console.print(Text.assemble(("left out: ", "bold yellow"), reason_left_out))
    if history.regressed:
        names = "; ".join(line.identity.text for line in history.regressed)
        console.print(Text(f"The newest run has regressed: {names}", style="bold red"))
    else:
        console.print("No newest run has regressed.")


def flag_text(flag: Flag) -> str:
    """A flag in words, with the run it is against."""
    what = "the best" if flag.against == "best" else "the previous"
    old = value_text(flag.change.figure, flag.earlier.figures[flag.change.figure])
    return (
        f"{label_of(flag.change.figure)}: {reason(flag.change)} than {what}, {old} "
        f"({flag.earlier.label}, {flag.earlier.time_text})"
    )


def _headlines(line: Line) -> list[str]:
    """The figures that get a column: the chief ones, of inference that of the largest batch."""
    found = {key: None for entry in line.entries for key in entry.run.figures}
    chosen = [key for key in _HEADLINES if key in found]
    inference = [key for key in found if key.startswith("inference_images_per_s")]
    return chosen + inference[-1:]


def _table(line: Line) -> Table:
    table = Table(title=line.identity.text, title_justify="left", title_style="bold")
    if line.settings:
        table.caption = f"other settings: {'; '.join(line.settings)}"
        table.caption_justify = "left"
    table.add_column("ended (UTC)", no_wrap=True)
    table.add_column("run", overflow="fold")
    keys = _headlines(line)
    for key in keys:
        table.add_column(_head(key), justify="right", no_wrap=True)
    table.add_column("environment", overflow="fold")
    table.add_column("", no_wrap=True)
    for entry in line.entries:
        table.add_row(
            entry.run.time_text,
            Text(entry.run.label),
            *(_cell(key, entry.run.figures.get(key)) for key in keys),
            Text(versions_text(entry)),
            _mark(entry),
        )
    return table


def _head(key: str) -> str:
    if key == "top1":
        return "top-1, %"
    if key == "train_images_per_s":
        return "images/s"
    return f"{label_of(key)}, images/s"


def _cell(key: str, value: float | None) -> str:
    return number(value) if key == "top1" else rate(value)


def versions_text(entry: Entry) -> str:
    """The environment on one line, without what is not known."""
    known = environment_of(entry.run)
    parts: Sequence[str] = [
        _version(key, known[key]) for key in _SHOWN_VERSIONS if known[key] != "-"
    ]
    return ", ".join(parts)


def _version(key: str, value: str) -> str:
    if key == "container":
        return value
    if key == "git_commit":
        commit, dash, dirty = value.partition("-")
        return f"git {commit[:_COMMIT_DIGITS]}{dash}{dirty}"
    return f"{key} {value}"


def _mark(entry: Entry) -> Text:
    if not entry.run.finished:
        return Text(str(entry.run.report.exit["status"]), style="bold red")
    return Text("worse", style="bold red") if entry.flags else Text("ok", style="green")
