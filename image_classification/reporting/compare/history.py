"""``report history``: every run below a folder, by name and time, and what got worse.

Runs of one name with equal settings form a line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from image_classification.core.errors import WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.compare.identity import (
    Identity,
    differences,
    environment_of,
    run_json,
    short_commit,
)
from image_classification.reporting.compare.regression import (
    DEFAULTS,
    Change,
    Thresholds,
    compare_figure,
)
from image_classification.reporting.figures import (
    figure_of,
    label_of,
    plain_value,
    split_batch,
    value_text,
)
from image_classification.reporting.run_folder import RecordedRun, find_reports, read_run
from image_classification.reporting.table import Cell, Column, Table, print_table

SCHEMA_VERSION = 1

AGAINST = ("best", "previous")
Against = Literal["best", "previous"]

_HEADLINES = ("top1", "train_images_per_s", "data_images_per_s")
_VERSIONS = ("device", "container", "driver", "cuda", "torch", "dali", "git")


@dataclass(frozen=True)
class Flag:
    """A figure that is worse than that of the run ``earlier``."""

    change: Change
    against: Against
    earlier: RecordedRun

    @property
    def text(self) -> str:
        """The flag in words."""
        what = "the best" if self.against == "best" else "the previous"
        key = self.change.figure
        old = value_text(key, self.earlier.figures[key])
        return (
            f"{label_of(key)}: {self.change.reason} than {what}: {old} "
            f"({self.earlier.label}, {self.earlier.time_text})"
        )


@dataclass(frozen=True)
class Entry:
    """One run of a line, with the figures in which it is worse than earlier ones."""

    run: RecordedRun
    flags: tuple[Flag, ...]


@dataclass(frozen=True)
class Line:
    """The runs of one name with equal settings, oldest first.

    settings: how they differ from those of the first line of the same name, in words.
    """

    identity: Identity
    entries: tuple[Entry, ...]
    settings: tuple[str, ...]

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
    """All lines below a folder. left_out: reports that could not be read, and why."""

    lines: tuple[Line, ...]
    left_out: tuple[str, ...]

    @property
    def regressed(self) -> list[Line]:
        """The lines whose newest run is worse than an earlier one, or diverged."""
        return [line for line in self.lines if line.regressed]


def read_history(
    folder: Path,
    thresholds: Thresholds = DEFAULTS,
    ignored: Collection[str] = (),
    against: Against = "best",
) -> History:
    """Read all reports below ``folder``.

    ignored: settings in which the runs of one line may differ. against: the earlier run that each
    is compared with. The best of all finds slow drifts; the previous one accepts earlier losses.

    Raises:
        WorkspaceError: the folder cannot be listed or has no report that can be read.
    """
    runs: list[RecordedRun] = []
    left_out: list[str] = []
    for path in find_reports(folder):
        try:
            run = read_run(path)
        except WorkspaceError as error:
            left_out.append(error.message)
            continue
        runs.append(run)
    if not runs:
        more = "" if len(left_out) == 1 else f" (and {len(left_out) - 1} more)"
        raise WorkspaceError(
            f"no report below {printable(str(folder))} can be read: {left_out[0]}{more}"
        )
    return History(tuple(_lines(runs, thresholds, ignored, against)), tuple(left_out))


def _lines(
    runs: Sequence[RecordedRun],
    thresholds: Thresholds,
    ignored: Collection[str],
    against: Against,
) -> list[Line]:
    """Sort runs into lines, by name; of each name the line with the oldest run comes first."""
    lines: dict[Identity, list[list[RecordedRun]]] = {}
    for run in sorted(runs, key=lambda run: (run.ended_at, str(run.path))):
        same_name = lines.setdefault(Identity.of(run), [])
        for line in same_name:
            if not differences(line[0], run, ignored):
                line.append(run)
                break
        else:
            same_name.append([run])
    return [
        Line(
            identity,
            tuple(_entries(line, thresholds, against)),
            tuple(differences(same_name[0][0], line[0], ignored)),
        )
        for identity, same_name in sorted(lines.items(), key=lambda item: item[0].text)
        for line in same_name
    ]


def _entries(line: Sequence[RecordedRun], thresholds: Thresholds, against: Against) -> list[Entry]:
    entries = []
    finished: list[RecordedRun] = []
    for run in line:
        flags: list[Flag] = []
        if run.finished:
            flags = _flags(finished, run, thresholds, against)
            finished.append(run)
        entries.append(Entry(run, tuple(flags)))
    return entries


def _flags(
    before: Sequence[RecordedRun], run: RecordedRun, thresholds: Thresholds, against: Against
) -> list[Flag]:
    found = []
    for key, value in run.figures.items():
        figure = figure_of(key)
        known = [earlier for earlier in before if key in earlier.figures]
        if figure.threshold is None or not known:
            continue
        earlier = known[-1]
        if against == "best":
            best = min if figure.lower_is_better else max
            earlier = best(known, key=lambda other: other.figures[key])
        change = compare_figure(key, earlier.figures[key], value, thresholds)
        if change.verdict == "regressed":
            found.append(Flag(change, against, earlier))
    return found


def history_json(history: History) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/reports.md describes its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "lines": [
            {
                "name": asdict(line.identity),
                "settings": list(line.settings),
                "regressed": line.regressed,
                "runs": [_entry_json(entry) for entry in line.entries],
            }
            for line in history.lines
        ],
        "left_out": list(history.left_out),
        "regressed": [line.identity.text for line in history.regressed],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        **run_json(entry.run),
        "status": entry.run.report.exit.status,
        "figures": dict(entry.run.figures),
        "environment": environment_of(entry.run),
        "flags": [
            {**asdict(flag.change), "against": flag.against, "earlier": str(flag.earlier.path)}
            for flag in entry.flags
        ],
    }


def print_history(console: Console, history: History) -> None:
    """Print every line as a table with its flags below, and the outcome."""
    for line in history.lines:
        print_table(console, _line_table(line))
        for entry in line.entries:
            style = "bold red" if entry is line.latest else "yellow"
            for flag in entry.flags:
                console.print(Text(f"{entry.run.label}, {flag.text}", style=style))
        console.print()
    for reason in history.left_out:
        console.print(Text.assemble(("left out: ", "bold yellow"), reason))
    if history.regressed:
        names = "; ".join(line.identity.text for line in history.regressed)
        console.print(Text(f"The newest run has regressed: {names}", style="bold red"))
    else:
        console.print("No newest run has regressed.")


def _line_table(line: Line) -> Table:
    """Return a row per run: its headline figures, and the versions that changed in the line."""
    versions = [_versions(entry.run) for entry in line.entries]
    changed = [key for key in _VERSIONS if len({each[key] for each in versions}) > 1]
    unchanged = [f"{key} {versions[0][key]}" for key in _VERSIONS if key not in changed]
    notes = [f"other settings: {'; '.join(line.settings)}"] if line.settings else []
    numbers = _numbered([each["container"] for each in versions])
    if numbers and "container" in changed:
        # Names of images are too long for a column.
        notes += [f"container {at}: {text}" for text, at in numbers.items()]
        versions = [each | {"container": numbers[each["container"]]} for each in versions]
    notes.append(", ".join(text for text in unchanged if not text.endswith(" -")))
    keys = _headline_figures(line)
    return Table(
        (
            Column("ended", wrap=False),
            Column("run"),
            *(Column(_head(key), "number") for key in keys),
            *map(Column, changed),
            Column(wrap=False),
        ),
        [
            (
                f"{'' if entry.run.time_is_known else '~'}{entry.run.ended_at:%Y-%m-%d}",
                entry.run.label,
                *(plain_value(key, entry.run.figures.get(key)) for key in keys),
                *(each[key] for key in changed),
                _status(entry),
            )
            for entry, each in zip(line.entries, versions, strict=True)
        ],
        title=line.identity.text,
        notes=notes,
        look="compact",
    )


def _headline_figures(line: Line) -> list[str]:
    """Return the figures that get a column; of inference only the largest batch."""
    found = {key: None for entry in line.entries for key in entry.run.figures}
    inference = [key for key in found if key.startswith("inference_images_per_s")]
    return [key for key in _HEADLINES if key in found] + inference[-1:]


def _head(key: str) -> str:
    figure, batch = split_batch(key)
    if figure == "top1":
        return "top-1\n%"
    if batch is not None:
        return f"batch {batch}\nimages/s"
    return f"{'loading' if figure == 'data_images_per_s' else 'training'}\nimages/s"


def _versions(run: RecordedRun) -> dict[str, str]:
    environment = environment_of(run)
    environment["git"] = short_commit(environment["git_commit"])
    return {key: environment[key] for key in _VERSIONS}


def _numbered(containers: Sequence[str]) -> dict[str, str]:
    """Return a number per container if one of them has the name of an image, else nothing."""
    found = dict.fromkeys(containers)
    if all("," not in text for text in found):
        return {}
    return {text: str(at) for at, text in enumerate(found, 1)}


def _status(entry: Entry) -> Cell:
    if not entry.run.finished:
        return Cell(entry.run.report.exit.status, mark="regressed")
    return Cell("worse", mark="regressed") if entry.flags else Cell("ok", mark="ok")
