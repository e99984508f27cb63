"""``report history``: every run below a folder, by name and time, and what got worse.

Runs of one name with equal settings form a line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from image_classification.core.errors import WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.compare.identity import (
    Identity,
    differences,
    environment_of,
    group_equal,
    read_below,
    run_json,
    short_commit,
)
from image_classification.reporting.compare.regression import (
    DEFAULTS,
    Change,
    Thresholds,
    compare_figure,
    standard_error,
)
from image_classification.reporting.figures import figure_of, plain_value, split_batch, value_text
from image_classification.reporting.run_folder import RecordedRun
from image_classification.reporting.table import Cell, Column, Row, Table, print_table

AGAINST = ("best", "previous")

_HEADLINES = {
    "top1": "top-1\n%",
    "train_images_per_s": "training\nimages/s",
    "data_images_per_s": "loading\nimages/s",
}
_VERSIONS = ("device", "container", "driver", "cuda", "torch", "dali", "git")


@dataclass(frozen=True)
class Flag:
    """A figure that is worse than that of the run ``earlier``."""

    change: Change
    earlier: RecordedRun

    def text(self, against: str) -> str:
        """Return the flag in words. against: see `History`."""
        old = value_text(self.change.figure, self.change.old)
        at = f"({self.earlier.label}, {self.earlier.time_text})"
        return f"{self.change.reason} than the {against}: {old} {at}"


@dataclass(frozen=True)
class Entry:
    """One run of a line, with the figures in which it is worse than earlier ones."""

    run: RecordedRun
    flags: Sequence[Flag]


@dataclass(frozen=True)
class Line:
    """The runs of one name with equal settings, oldest first.

    settings: how they differ from those of the first line of the same name, in words.
    """

    identity: Identity
    entries: Sequence[Entry]
    settings: Sequence[str]

    @property
    def latest(self) -> Entry | None:
        """The newest run that finished or diverged, if any."""
        ended = [entry for entry in self.entries if entry.run.finished or entry.run.diverged]
        return ended[-1] if ended else None

    @property
    def regressed(self) -> bool:
        """Whether the newest run is worse than an earlier one, or diverged."""
        latest = self.latest
        return latest is not None and (latest.run.diverged or bool(latest.flags))


@dataclass(frozen=True)
class History:
    """All lines below a folder.

    left_out: reports that could not be read, and why. against: ``best`` or ``previous``, the
    earlier run that each is compared with.
    """

    lines: Sequence[Line]
    left_out: Sequence[str]
    against: str

    @property
    def regressed(self) -> list[str]:
        """The lines whose newest run is worse than an earlier one, or diverged."""
        return [line.identity.text for line in self.lines if line.regressed]


def read_history(
    folder: Path,
    thresholds: Thresholds = DEFAULTS,
    ignored: Collection[str] = (),
    against: str = "best",
) -> History:
    """Read all reports below ``folder``.

    ignored: settings in which the runs of one line may differ. against: one of `AGAINST`. The
    best of all finds slow drifts; the previous one accepts earlier losses.

    Raises:
        WorkspaceError: the folder cannot be listed or has no report that can be read.
    """
    runs, left_out = read_below(folder)
    if not runs:
        more = "" if len(left_out) == 1 else f" (and {len(left_out) - 1} more)"
        raise WorkspaceError(
            f"no report below {printable(str(folder))} can be read: {left_out[0]}{more}"
        )
    by_name: dict[Identity, list[RecordedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.ended_at, str(run.path))):
        by_name.setdefault(Identity.of(run), []).append(run)
    lines = [
        Line(
            identity,
            _entries(line, thresholds, against),
            differences(same[0], line[0], ignored, weights=True),
        )
        for identity, same in sorted(by_name.items(), key=lambda item: item[0].text)
        for line in group_equal(same, ignored)
    ]
    return History(lines, left_out, against)


def _entries(line: Sequence[RecordedRun], thresholds: Thresholds, against: str) -> list[Entry]:
    """Compare every finished run with the finished ones before it."""
    entries: list[Entry] = []
    finished: list[RecordedRun] = []
    for run in line:
        flags = []
        for key, value in run.figures.items() if run.finished else ():
            known = [earlier for earlier in finished if key in earlier.figures]
            if not known:
                continue
            earlier = known[-1]
            if against == "best":
                best = min if figure_of(key).lower_is_better else max
                earlier = best(known, key=lambda other: other.figures[key])
            error = None
            if figure_of(key).threshold is not None:
                error = standard_error(key, [earlier], [run], known)
            change = compare_figure(key, earlier.figures[key], value, thresholds, error)
            if change is not None and change.verdict == "regressed":
                flags.append(Flag(change, earlier))
        if run.finished:
            finished.append(run)
        entries.append(Entry(run, flags))
    return entries


def history_json(history: History) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/reports.md describes its keys."""

    def entry_json(entry: Entry) -> dict[str, Any]:
        return {
            **run_json(entry.run),
            "status": entry.run.report.exit.status,
            "figures": dict(entry.run.figures),
            "environment": environment_of(entry.run),
            "flags": [
                {
                    **asdict(flag.change),
                    "against": history.against,
                    "earlier": str(flag.earlier.path),
                }
                for flag in entry.flags
            ],
        }

    return {
        "schema_version": 1,
        "lines": [
            {
                "name": asdict(line.identity),
                "settings": list(line.settings),
                "regressed": line.regressed,
                "runs": [entry_json(entry) for entry in line.entries],
            }
            for line in history.lines
        ],
        "left_out": list(history.left_out),
        "regressed": history.regressed,
    }


def print_history(console: Console, history: History) -> None:
    """Print every line as a table with its flags below, and the outcome."""
    for line in history.lines:
        print_table(console, line_table(line))
        for entry in line.entries:
            style = "bold red" if entry is line.latest else "yellow"
            for flag in entry.flags:
                text = f"{entry.run.label}, {flag.text(history.against)}"
                console.print(Text(text, style=style))
        console.print()
    for reason in history.left_out:
        console.print(Text.assemble(("left out: ", "bold yellow"), reason))
    if history.regressed:
        names = "; ".join(history.regressed)
        console.print(Text(f"The newest run has regressed: {names}", style="bold red"))
    else:
        console.print("None of the newest runs has regressed.")


def shown_figures(line: Line) -> dict[str, str]:
    """Return the main figures that the runs have, each with its head of two lines.

    Of inference, only the speed at the largest batch.
    """
    found = {key: None for entry in line.entries for key in entry.run.figures}
    heads = {key: head for key, head in _HEADLINES.items() if key in found}
    inference = [key for key in found if key.startswith("inference_images_per_s")]
    for key in inference[-1:]:
        heads[key] = f"batch {split_batch(key)[1]}\nimages/s"
    return heads


def line_table(line: Line) -> Table:
    """Return a row per run: its headline figures, and the versions that changed in the line."""
    runs = [entry.run for entry in line.entries]
    environments = [environment_of(run) for run in runs]
    for environment in environments:
        environment["git"] = short_commit(environment["git_commit"])
    first = environments[0]
    changed = [key for key in _VERSIONS if any(each[key] != first[key] for each in environments)]
    notes = [f"other settings: {'; '.join(line.settings)}"] if line.settings else []
    containers = list(dict.fromkeys(each["container"] for each in environments))
    if "container" in changed and any("," in text for text in containers):
        # Names of images are too long for a column.
        notes += [f"container {at}: {text}" for at, text in enumerate(containers, 1)]
        for environment in environments:
            environment["container"] = str(containers.index(environment["container"]) + 1)
    unchanged = [f"{key} {first[key]}" for key in _VERSIONS if key not in changed]
    notes.append(", ".join(text for text in unchanged if not text.endswith(" -")))

    heads = shown_figures(line)
    columns = [Column("ended", wrap=False, css="nowrap"), Column("run", css="nowrap")]
    columns += [Column(head, "number") for head in heads.values()]
    columns += [*map(Column, changed), Column(wrap=False)]
    rows: list[Row] = [
        (
            f"{'' if entry.run.time_is_known else '~'}{entry.run.ended_at:%Y-%m-%d}",
            entry.run.label,
            *(plain_value(key, entry.run.figures.get(key)) for key in heads),
            *(environment[key] for key in changed),
            _status(entry),
        )
        for entry, environment in zip(line.entries, environments, strict=True)
    ]
    return Table(columns, rows, line.identity.text, notes, look="compact")


def _status(entry: Entry) -> Cell:
    if not entry.run.finished:
        return Cell(entry.run.report.exit.status, mark="regressed")
    return Cell("worse", mark="regressed") if entry.flags else Cell("ok", mark="ok")
