"""What `report history` says: as data, on the console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from image_classification.reporting.compare.history import (
    Entry,
    Flag,
    History,
    Line,
)
from image_classification.reporting.compare.regression import environment_of, short_commit
from image_classification.reporting.compare.regression_text import reason, run_json
from image_classification.reporting.figures import label_of, plain_value, split_batch, value_text
from image_classification.reporting.table import print_titled

SCHEMA_VERSION = 1

_HEADLINES = ("top1", "train_images_per_s", "data_images_per_s")
_SHOWN = ("device", "container", "driver", "cuda", "torch", "dali", "git")


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
                "status": entry.run.report.exit.status,
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
        _print_line(console, line)
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
        f"{label_of(flag.change.figure)}: {reason(flag.change)} than {what}: {old} "
        f"({flag.earlier.label}, {flag.earlier.time_text})"
    )


def _headlines(line: Line) -> list[str]:
    """The figures that get a column: the chief ones, of inference that of the largest batch."""
    found = {key: None for entry in line.entries for key in entry.run.figures}
    chosen = [key for key in _HEADLINES if key in found]
    inference = [key for key in found if key.startswith("inference_images_per_s")]
    return chosen + inference[-1:]


def _print_line(console: Console, line: Line) -> None:
    environments = [short_environment(entry) for entry in line.entries]
    changing = [key for key in _SHOWN if len({env[key] for env in environments}) > 1]
    same = [f"{key} {environments[0][key]}" for key in _SHOWN if key not in changing]
    note = ", ".join(text for text in same if not text.endswith(" -"))
    numbers = _numbered([env["container"] for env in environments])
    if numbers and "container" in changing:
        # Images' names are too long for a column.
        note = "\n".join([*(f"container {at}: {text}" for text, at in numbers.items()), note])
        environments = [env | {"container": numbers[env["container"]]} for env in environments]
    if line.settings:
        note = f"other settings: {'; '.join(line.settings)}\n{note}"
    # Narrow, so that the versions fit beside the figures.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("ended", no_wrap=True)
    table.add_column("run", overflow="fold")
    keys = _headlines(line)
    for key in keys:
        table.add_column(_head(key), justify="right", no_wrap=True)
    for key in changing:
        table.add_column(key, overflow="fold")
    table.add_column("", no_wrap=True)
    for entry, environment in zip(line.entries, environments, strict=True):
        table.add_row(
            f"{'' if entry.run.time_is_known else '~'}{entry.run.ended_at:%Y-%m-%d}",
            Text(entry.run.label),
            *(plain_value(key, entry.run.figures.get(key)) for key in keys),
            *(Text(environment[key]) for key in changing),
            _mark(entry),
        )
    print_titled(console, line.identity.text, table, note)


def _numbered(containers: Sequence[str]) -> dict[str, str]:
    """Number the containers as they come, where one of them has an image's name."""
    found = dict.fromkeys(containers)
    if all("," not in text for text in found):
        return {}
    return {text: str(at) for at, text in enumerate(found, 1)}


def _head(key: str) -> str:
    kind, batch = split_batch(key)
    if kind == "top1":
        return "top-1\n%"
    if batch is not None:
        return f"batch {batch}\nimages/s"
    return f"{'loading' if kind == 'data_images_per_s' else 'training'}\nimages/s"


def short_environment(entry: Entry) -> dict[str, str]:
    """The chief versions, by their names in tables; ``-`` where the report does not say."""
    known = environment_of(entry.run)
    return {
        **{key: known[key] for key in _SHOWN if key != "git"},
        "git": short_commit(known["git_commit"]),
    }


def _mark(entry: Entry) -> Text:
    if not entry.run.finished:
        return Text(str(entry.run.report.exit.status), style="bold red")
    return Text("worse", style="bold red") if entry.flags else Text("ok", style="green")
