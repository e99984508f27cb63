"""``report compare``: which figures got worse from an old run to a new one of the same name.

Two runs, or all runs of one folder against those of the same names in another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from image_classification.core.errors import WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.compare.identity import (
    Identity,
    check_finished,
    check_same,
    differences,
    environment_of,
    listed,
    run_json,
    short_commit,
)
from image_classification.reporting.figures import figure_of, label_of, order, value_text
from image_classification.reporting.report import REPORT_NAME
from image_classification.reporting.run_folder import RecordedRun, find_reports, read_run
from image_classification.reporting.table import Column, Table, columns, marked, print_table

SCHEMA_VERSION = 1

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
"""Every threshold, by the name in `Figure.threshold`."""

DEFAULTS: Thresholds = {name: threshold.default for name, threshold in THRESHOLDS.items()}


@dataclass(frozen=True)
class Change:
    """One figure of two runs, in the figure's unit.

    change: in points or percent, positive if the value grew; None if one is not measured or the
    old one is 0. threshold: in the same unit.
    """

    figure: str
    old: float | None
    new: float | None
    change: float | None
    unit: str
    threshold: float
    verdict: Verdict

    @property
    def text(self) -> str:
        """The change with its sign and unit."""
        if self.change is None:
            return "-"
        if self.unit == "points":
            return f"{self.change:+.2f} points"
        return f"{self.change:+.1f} %"

    @property
    def reason(self) -> str:
        """Why the change is a regression, in words."""
        unit = "points" if self.unit == "points" else "%"
        return f"{self.text}, worse by more than {self.threshold:g} {unit}"


@dataclass(frozen=True)
class Comparison:
    """Two runs of one name. environment: key -> (old, new), where they differ.

    old_runs, new_runs: the number of runs that the figures are the medians of.
    """

    old: RecordedRun
    new: RecordedRun
    changes: tuple[Change, ...]
    environment: Mapping[str, tuple[str, str]]
    old_runs: int = 1
    new_runs: int = 1

    @property
    def regressed(self) -> list[Change]:
        """The figures that got worse by more than their thresholds."""
        return [change for change in self.changes if change.verdict == "regressed"]


def compare_runs(
    old: RecordedRun,
    new: RecordedRun,
    thresholds: Thresholds = DEFAULTS,
    ignored: Collection[str] = (),
) -> Comparison:
    """Compare two runs of one name. ignored: settings that may differ.

    Raises:
        WorkspaceError: a run ended early, the two are not the same named run, or they have no
            figure in common.
    """
    check_same(old, new, ignored, "compare runs of the same names and options")
    for run in (old, new):
        check_finished(run)
    keys = sorted({*old.figures, *new.figures}, key=order)
    changes = tuple(
        compare_figure(key, old.figures.get(key), new.figures.get(key), thresholds)
        for key in keys
        if figure_of(key).threshold is not None
    )
    if all(change.verdict == "not measured" for change in changes):
        raise WorkspaceError(
            f"{printable(str(old.path))} and {printable(str(new.path))} have no figure in common: "
            "compare runs that measured the same"
        )
    before, after = environment_of(old), environment_of(new)
    environment = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    return Comparison(old, new, changes, environment)


def compare_figure(
    key: str, old: float | None, new: float | None, thresholds: Thresholds
) -> Change:
    """Compare the values of a figure that has a threshold."""
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
    if change is not None:
        # Rounded so that a difference that equals the threshold in print is within it.
        worse = round(change if figure.lower_is_better else -change, 6)
        verdict = "regressed" if worse > limit else "improved" if worse < -limit else "ok"
    return Change(key, old, new, change, unit, limit, verdict)


@dataclass(frozen=True)
class FolderComparison:
    """All runs that two folders have in common.

    not_compared: runs that are in only one of them, in words. left_out: reports that could not be
    read or are of runs that ended early, and why. diverged: the new folder's runs that diverged.
    """

    old: Path
    new: Path
    comparisons: tuple[Comparison, ...]
    not_compared: tuple[str, ...]
    left_out: tuple[str, ...]
    diverged: tuple[str, ...]

    @property
    def regressed(self) -> list[str]:
        """The runs that got worse by more than a threshold, or diverged."""
        worse = [Identity.of(c.new).text for c in self.comparisons if c.regressed]
        return [*worse, *self.diverged]


def holds_runs(path: Path) -> bool:
    """Return whether ``path`` is a folder of runs, rather than a run or its report."""
    return path.is_dir() and not (path / REPORT_NAME).exists()


def compare_folders(
    old: Path, new: Path, thresholds: Thresholds = DEFAULTS, ignored: Collection[str] = ()
) -> FolderComparison:
    """Compare every run of ``new`` with the run of the same name and settings of ``old``.

    If a folder has several such runs, the median of each figure is used. ignored: settings that
    may differ.

    Raises:
        WorkspaceError: a folder cannot be listed or has no report, or no run is in both.
    """
    old_groups, old_left_out, _ = _read_folder(old, ignored)
    new_groups, new_left_out, diverged = _read_folder(new, ignored)
    unmatched = list(old_groups)
    comparisons, not_compared = [], []
    for runs in new_groups:
        partner = next((o for o in unmatched if not differences(o[0], runs[0], ignored)), None)
        if partner is None:
            not_compared.append(_why_not_compared(runs[0], old_groups, new, ignored))
            continue
        unmatched.remove(partner)
        try:
            comparison = compare_runs(_typical(partner), _typical(runs), thresholds, ignored)
        except WorkspaceError as error:
            not_compared.append(error.message)
        else:
            comparisons.append(replace(comparison, old_runs=len(partner), new_runs=len(runs)))
    not_compared += [_only_in(old, runs[0]) for runs in unmatched]
    left_out = (*old_left_out, *new_left_out)
    if not comparisons and not diverged:
        raise WorkspaceError(
            f"no run of {printable(str(new))} can be compared with one of {printable(str(old))} "
            f"({[*not_compared, *left_out][0]}): compare folders with finished runs of the same "
            "names and options"
        )
    return FolderComparison(
        old,
        new,
        tuple(comparisons),
        tuple(not_compared),
        left_out,
        tuple(f"{Identity.of(run).text} diverged" for run in diverged),
    )


def _read_folder(
    folder: Path, ignored: Collection[str]
) -> tuple[list[list[RecordedRun]], list[str], list[RecordedRun]]:
    """Return finished runs by name and settings, what was left out and why, and diverged runs."""
    groups: list[list[RecordedRun]] = []
    left_out, diverged = [], []
    for path in find_reports(folder):
        try:
            run = read_run(path)
            if run.diverged:
                diverged.append(run)
            check_finished(run)
        except WorkspaceError as error:
            left_out.append(error.message)
            continue
        for group in groups:
            if not differences(group[0], run, ignored):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups, left_out, diverged


def _typical(runs: Sequence[RecordedRun]) -> RecordedRun:
    """Return the newest of ``runs`` with the median of each figure that any of them has."""
    keys = sorted({key for run in runs for key in run.figures}, key=order)
    figures = {key: median(run.figures[key] for run in runs if key in run.figures) for key in keys}
    return replace(max(runs, key=lambda run: run.ended_at), figures=figures)


def _why_not_compared(
    run: RecordedRun,
    others: Sequence[Sequence[RecordedRun]],
    folder: Path,
    ignored: Collection[str],
) -> str:
    identity = Identity.of(run)
    for other, *_ in others:
        if Identity.of(other) == identity:
            return f"{identity.text}: other settings ({listed(differences(other, run, ignored))})"
    return _only_in(folder, run)


def _only_in(folder: Path, run: RecordedRun) -> str:
    return f"{Identity.of(run).text}: only in {printable(str(folder))}"


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return what ``--json`` prints for two runs; docs/reports.md describes its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": asdict(comparison.new.report.name),
        "num_devices": comparison.new.num_devices,
        "old": {**run_json(comparison.old), "runs": comparison.old_runs},
        "new": {**run_json(comparison.new), "runs": comparison.new_runs},
        "changes": [asdict(change) for change in comparison.changes],
        "environment": {
            key: {"old": old, "new": new} for key, (old, new) in comparison.environment.items()
        },
        "regressed": [change.figure for change in comparison.regressed],
    }


def folders_json(found: FolderComparison) -> dict[str, Any]:
    """Return what ``--json`` prints for two folders; docs/reports.md describes its keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "old": str(found.old),
        "new": str(found.new),
        "comparisons": [comparison_json(comparison) for comparison in found.comparisons],
        "not_compared": list(found.not_compared),
        "left_out": list(found.left_out),
        "regressed": found.regressed,
    }


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print figures, environments and the outcome."""
    print_table(console, _figure_table(comparison))
    _print_environment(console, comparison.environment)
    _print_regressed(console, comparison)
    if not comparison.regressed:
        console.print("No figure regressed.")


def print_folders(console: Console, found: FolderComparison) -> None:
    """Print every pair of runs, the environments once if all have the same, and the outcome."""
    environments = [comparison.environment for comparison in found.comparisons]
    once = all(environment == environments[0] for environment in environments)
    for comparison in found.comparisons:
        print_table(console, _figure_table(comparison))
        if not once:
            _print_environment(console, comparison.environment)
        if comparison.regressed:
            _print_regressed(console, comparison)
            console.print()
    if once and environments:
        _print_environment(console, environments[0])
    for head, lines in (("not compared: ", found.not_compared), ("left out: ", found.left_out)):
        for line in lines:
            console.print(Text.assemble((head, "bold yellow"), line))
    if found.regressed:
        console.print(Text(f"Regressed: {'; '.join(found.regressed)}", style="bold red"))
    else:
        count = len(found.comparisons)
        console.print(f"No figure of {count} {'run' if count == 1 else 'runs'} regressed.")


def _figure_table(comparison: Comparison) -> Table:
    sides = (
        ("old", comparison.old, comparison.old_runs),
        ("new", comparison.new, comparison.new_runs),
    )
    notes = []
    for side, run, runs in sides:
        of = f"median of {runs} runs, the newest " if runs > 1 else ""
        notes.append(f"{side}: {of}{run.label}, {run.time_text}, seed {run.seed}")
    return Table(
        (
            Column("figure"),
            *columns("old", "new", "change", numbers=range(3)),
            Column("verdict", wrap=False),
        ),
        [
            (
                label_of(change.figure),
                value_text(change.figure, change.old),
                value_text(change.figure, change.new),
                change.text,
                marked(change.verdict),
            )
            for change in comparison.changes
        ],
        title=Identity.of(comparison.new).text,
        notes=[*notes, ""],
    )


def _print_environment(console: Console, environment: Mapping[str, tuple[str, str]]) -> None:
    if not environment:
        console.print("The environments are the same.")
        return
    rows = []
    for key, (old, new) in environment.items():
        if key == "git_commit":
            old, new = short_commit(old), short_commit(new)
        rows.append((key, old, new))
    heads = (Column("what", wrap=False), *columns("old", "new"))
    print_table(console, Table(heads, rows, title="Environments differ"))


def _print_regressed(console: Console, comparison: Comparison) -> None:
    for change in comparison.regressed:
        console.print(Text(f"{label_of(change.figure)}: {change.reason}", style="bold red"))
