"""The runs of one folder against those of the same names in another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.reporting.measured import order
from image_classification.reporting.named_run import Identity, check_finished, differences, listed
from image_classification.reporting.plain import printable
from image_classification.reporting.regression import DEFAULTS, Comparison, Thresholds, compare_runs
from image_classification.reporting.run_file import RecordedRun, find_reports, read_run
from image_classification.reporting.summary import REPORT_NAME


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
            if run.report.exit["code"] == EXIT_DIVERGED:
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
