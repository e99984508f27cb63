"""A run against an earlier one of the same name: which figures got worse.

The runs of one folder against those of the same names in another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.compare.identity import (
    Identity,
    check_finished,
    check_same,
    device_names,
    differences,
    listed,
)
from image_classification.reporting.figures import figure_of, order
from image_classification.reporting.report import REPORT_NAME
from image_classification.reporting.run_folder import RecordedRun, find_reports, read_run

Verdict = Literal["ok", "regressed", "improved", "not measured"]
Thresholds = Mapping[str, float]


@dataclass(frozen=True)
class Threshold:
    """How much worse is a regression. unit: ``percent`` of the old value, or ``points``."""

    what: str
    unit: str
    default: float


THRESHOLDS: dict[str, Threshold] = {
    "throughput": Threshold("images/s of training, loading and inference", "percent", 5.0),
    "top1": Threshold("top-1, also of the averaged weights", "points", 0.2),
    "top5": Threshold("top-5, also of the averaged weights", "points", 0.2),
    "latency": Threshold("mean, p50 and p90 of inference latency", "percent", 5.0),
    "memory": Threshold("peak memory of a device", "percent", 5.0),
    "power": Threshold("mean power of a device", "percent", 10.0),
}
"""Every kind, by the name that `Figure.threshold` has."""

DEFAULTS: Thresholds = {name: kind.default for name, kind in THRESHOLDS.items()}


@dataclass(frozen=True)
class Change:
    """One figure of two runs, in the figure's unit.

    change: in points or percent, positive where the value grew; None where one is not measured or
    the old one is 0. threshold: in the same unit.
    """

    figure: str
    old: float | None
    new: float | None
    change: float | None
    unit: str
    threshold: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Two runs of one name. environment: key -> (old, new), where they differ.

    old_runs, new_runs: how many runs the figures of ``old`` and ``new`` are the medians of.
    """

    old: RecordedRun
    new: RecordedRun
    changes: tuple[Change, ...]
    environment: Mapping[str, tuple[str, str]]
    old_runs: int = 1
    new_runs: int = 1

    @property
    def regressed(self) -> list[Change]:
        """What got worse by more than its threshold."""
        return [change for change in self.changes if change.verdict == "regressed"]


def compare_runs(
    old: RecordedRun,
    new: RecordedRun,
    thresholds: Thresholds = DEFAULTS,
    ignored: Collection[str] = (),
) -> Comparison:
    """Compare two runs of one name, ``new`` against ``old``.

    ignored: settings that may differ.

    Raises:
        WorkspaceError: a run that ended early, two that are not the same named run, or no figure
            that both have.
    """
    check_same(old, new, ignored, "compare runs of the same names and options")
    for run in (old, new):
        check_finished(run)
    changes = changes_of(old.figures, new.figures, thresholds)
    if all(change.verdict == "not measured" for change in changes):
        raise WorkspaceError(
            f"{printable(str(old.path))} and {printable(str(new.path))} have no figure in common: "
            "compare runs that measured the same"
        )
    return Comparison(old, new, tuple(changes), environment_changes(old, new))


def changes_of(
    old: Mapping[str, float], new: Mapping[str, float], thresholds: Thresholds
) -> list[Change]:
    """Judge every figure that one of the two has and that a threshold is for."""
    keys = sorted({*old, *new}, key=order)
    return [
        judge(key, old.get(key), new.get(key), thresholds)
        for key in keys
        if figure_of(key).threshold is not None
    ]


def judge(key: str, old: float | None, new: float | None, thresholds: Thresholds) -> Change:
    """Judge one figure."""
    figure = figure_of(key)
    assert figure.threshold is not None
    limit = thresholds[figure.threshold]
    unit = THRESHOLDS[figure.threshold].unit
    change: float | None = None
    verdict: Verdict = "not measured"
    if old is not None and new is not None:
        if unit == "points":
            change = new - old
        elif old > 0:
            change = 100 * (new / old - 1)
        # A difference that equals the threshold in print is within it.
        worse = None if change is None else round(change if figure.lower_is_better else -change, 6)
        if worse is not None:
            verdict = "regressed" if worse > limit else "improved" if worse < -limit else "ok"
    return Change(key, old, new, change, unit, limit, verdict)


_SOFTWARE = (
    "container",
    "driver",
    "cuda",
    "cudnn",
    "torch",
    "torchvision",
    "dali",
    "python",
    "git_commit",
)


def environment_of(run: RecordedRun) -> dict[str, str]:
    """Return what a run ran on, by key; ``-`` where the report does not say."""
    environment = run.report.environment
    found = {key: _text(getattr(environment, key)) for key in _SOFTWARE}
    return {"device": device_names(run), "cpu": _text(environment.cpu), **found}


def environment_changes(old: RecordedRun, new: RecordedRun) -> dict[str, tuple[str, str]]:
    """Return what differs between two runs' environments: key -> (old, new)."""
    before, after = environment_of(old), environment_of(new)
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def short_commit(commit: str) -> str:
    """The first digits of a commit, with ``-dirty`` where it was that."""
    digits, dash, dirty = commit.partition("-")
    return f"{digits[:8]}{dash}{dirty}"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


@dataclass(frozen=True)
class FolderComparison:
    """All runs that two folders have in common.

    not_compared: runs that only one of them has, in words. left_out: reports that could not be
    read or are of runs that ended early, and why. diverged: those of the new folder whose loss
    was not finite.
    """

    old: Path
    new: Path
    comparisons: tuple[Comparison, ...]
    not_compared: tuple[str, ...]
    left_out: tuple[str, ...]
    diverged: tuple[str, ...]

    @property
    def regressed(self) -> list[str]:
        """Names of the runs that got worse by more than a threshold, or diverged."""
        worse = [Identity.of(c.new).text for c in self.comparisons if c.regressed]
        return [*worse, *self.diverged]


def holds_runs(path: Path) -> bool:
    """Whether ``path`` is a folder of runs, rather than a run or its report."""
    return path.is_dir() and not (path / REPORT_NAME).exists()


def compare_folders(
    old: Path, new: Path, thresholds: Thresholds = DEFAULTS, ignored: Collection[str] = ()
) -> FolderComparison:
    """Compare every run of ``new`` with the run of the same name and settings of ``old``.

    Of several such runs in a folder, the median of each figure counts. ignored: settings that
    may differ.

    Raises:
        WorkspaceError: a folder cannot be listed or has no report, or no run is in both.
    """
    theirs, left_out, _ = _read_folder(old, ignored)
    ours, unread, diverged = _read_folder(new, ignored)
    unmatched = list(theirs)
    comparisons, not_compared = [], []
    for runs in ours:
        partner = next((o for o in theirs if not differences(o[0], runs[0], ignored)), None)
        if partner is None:
            not_compared.append(_without_partner(runs, theirs, new, ignored))
            continue
        unmatched.remove(partner)
        try:
            comparison = compare_runs(_typical(partner), _typical(runs), thresholds, ignored)
        except WorkspaceError as error:
            not_compared.append(error.message)
            continue
        comparisons.append(replace(comparison, old_runs=len(partner), new_runs=len(runs)))
    not_compared += [f"{Identity.of(runs[0]).text}: only in {_name(old)}" for runs in unmatched]
    found = FolderComparison(
        old,
        new,
        tuple(comparisons),
        tuple(not_compared),
        (*left_out, *unread),
        tuple(f"{Identity.of(run).text} diverged" for run in diverged),
    )
    if not comparisons and not diverged:
        why = [*not_compared, *left_out, *unread][0]
        raise WorkspaceError(
            f"no run of {_name(new)} can be compared with one of {_name(old)} ({why}): compare "
            "folders with finished runs of the same names and options"
        )
    return found


def _read_folder(
    folder: Path, ignored: Collection[str]
) -> tuple[list[list[RecordedRun]], list[str], list[RecordedRun]]:
    """Return finished runs by name and settings, what was left out and why, and diverged runs."""
    groups: list[list[RecordedRun]] = []
    left_out, diverged = [], []
    for path in find_reports(folder):
        try:
            run = read_run(path)
            if run.report.exit.code == EXIT_DIVERGED:
                diverged.append(run)
            check_finished(run)
        except WorkspaceError as error:
            left_out.append(error.message)
            continue
        same = next((group for group in groups if not differences(group[0], run, ignored)), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    return groups, left_out, diverged


def _typical(runs: Sequence[RecordedRun]) -> RecordedRun:
    """Return the newest of ``runs`` with the median of each figure that any of them has."""
    keys = sorted({key for run in runs for key in run.figures}, key=order)
    figures = {key: median(run.figures[key] for run in runs if key in run.figures) for key in keys}
    return replace(max(runs, key=lambda run: run.ended_at), figures=figures)


def _without_partner(
    runs: Sequence[RecordedRun],
    theirs: Sequence[Sequence[RecordedRun]],
    folder: Path,
    ignored: Collection[str],
) -> str:
    identity = Identity.of(runs[0])
    for others in theirs:
        if Identity.of(others[0]) == identity:
            changes = listed(differences(others[0], runs[0], ignored))
            return f"{identity.text}: other settings ({changes})"
    return f"{identity.text}: only in {_name(folder)}"


def _name(folder: Path) -> str:
    return printable(str(folder))
