"""Every run below a folder, by name and in order of time, and what got worse along the way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.compare.identity import Identity, differences
from image_classification.reporting.compare.regression import (
    DEFAULTS,
    Change,
    Thresholds,
    judge,
)
from image_classification.reporting.figures import figure_of
from image_classification.reporting.run_folder import RecordedRun, find_reports, read_run

AGAINST = ("best", "previous")
Against = Literal["best", "previous"]


@dataclass(frozen=True)
class Flag:
    """A figure that is worse than an earlier one. earlier: the run with that one."""

    change: Change
    against: Against
    earlier: RecordedRun


@dataclass(frozen=True)
class Entry:
    """One run of a line; flags are of this run against the earlier ones."""

    run: RecordedRun
    flags: tuple[Flag, ...]

    @property
    def diverged(self) -> bool:
        """Whether it ended with a loss that is not finite."""
        return bool(self.run.report.exit.code == EXIT_DIVERGED)


@dataclass(frozen=True)
class Line:
    """The runs of one name with equal settings, oldest first.

    settings: where they differ from those of the first line of the same name, in words.
    """

    identity: Identity
    entries: tuple[Entry, ...]
    settings: tuple[str, ...]

    @property
    def latest(self) -> Entry | None:
        """The newest run that went to its end or diverged; None where there is none."""
        ended = [e for e in self.entries if e.run.finished or e.diverged]
        return ended[-1] if ended else None

    @property
    def regressed(self) -> bool:
        """Whether the newest run is worse than an earlier one, or diverged."""
        latest = self.latest
        return latest is not None and (latest.diverged or bool(latest.flags))


@dataclass(frozen=True)
class History:
    """All lines below a folder. left_out: reports that could not be read, and why."""

    lines: tuple[Line, ...]
    left_out: tuple[str, ...]

    @property
    def regressed(self) -> list[Line]:
        """Lines whose newest run is worse than an earlier one."""
        return [line for line in self.lines if line.regressed]


def read_history(
    folder: Path,
    thresholds: Thresholds = DEFAULTS,
    ignored: Collection[str] = (),
    against: Against = "best",
) -> History:
    """Read all reports below ``folder``.

    ignored: settings in which the runs of one line may differ. against: which earlier run each is
    held to. The best of all finds slow drifts; the previous forgets what was once accepted.

    Raises:
        WorkspaceError: the folder cannot be listed or has no report that can be read.
    """
    runs: list[RecordedRun] = []
    left_out: list[str] = []
    for path in find_reports(folder):
        read = _read(path)
        if isinstance(read, str):
            left_out.append(read)
        else:
            runs.append(read)
    if not runs:
        more = "" if len(left_out) == 1 else f" (and {len(left_out) - 1} more)"
        raise WorkspaceError(
            f"no report below {printable(str(folder))} can be read: {left_out[0]}{more}"
        )
    return History(tuple(lines_of(runs, thresholds, ignored, against)), tuple(left_out))


def _read(path: Path) -> RecordedRun | str:
    """Read a run, or say why it cannot be."""
    try:
        return read_run(path)
    except WorkspaceError as error:
        return error.message


def lines_of(
    runs: Sequence[RecordedRun],
    thresholds: Thresholds = DEFAULTS,
    ignored: Collection[str] = (),
    against: Against = "best",
) -> list[Line]:
    """Sort runs into lines, by name; within a name the line with the oldest run comes first."""
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
    before: list[RecordedRun] = []
    for run in line:
        flags = _flags(before, run, thresholds, against) if run.finished else []
        entries.append(Entry(run, tuple(flags)))
        if run.finished:
            before.append(run)
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
        earlier = known[-1] if against == "previous" else _best(known, key, figure.lower_is_better)
        change = judge(key, earlier.figures[key], value, thresholds)
        if change.verdict == "regressed":
            found.append(Flag(change, against, earlier))
    return found


def _best(known: Sequence[RecordedRun], key: str, less: bool) -> RecordedRun:
    values = [run.figures[key] for run in known]
    return known[values.index(min(values) if less else max(values))]
