"""``report compare``: which figures got worse from an old run to a new one of the same name.

Two runs, or all runs of one folder against those of the same names in another. An accuracy only
regressed if the change is beyond what chance explains, see `standard_error`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from image_classification.core.errors import WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.compare.groups import Spread, spread
from image_classification.reporting.compare.identity import (
    Identity,
    check_finished,
    check_same,
    differences,
    environment_of,
    group_equal,
    listed,
    read_below,
    run_json,
    short_commit,
    weights_texts,
)
from image_classification.reporting.figures import figure_of, label_of, order, value_text
from image_classification.reporting.run_folder import RecordedRun
from image_classification.reporting.table import Cell, Column, Table, columns, marked, print_table

Thresholds = Mapping[str, float]
Verdict = Literal["ok", "regressed", "improved", "not significant", "not measured"]

SIGNIFICANT = 2.0
"""A change of an accuracy is significant beyond this many of its standard errors."""


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
    old one is 0. threshold: in the same unit. standard_error: of an accuracy's change, in points;
    None if unknown. in_standard_errors: the change divided by it.
    """

    figure: str
    old: float | None
    new: float | None
    change: float | None
    unit: str
    threshold: float
    verdict: Verdict
    standard_error: float | None = None
    in_standard_errors: float | None = None

    @property
    def text(self) -> str:
        """The change with its sign and unit."""
        if self.change is None:
            return "-"
        digits, unit = (2, "points") if self.unit == "points" else (1, "%")
        return f"{round(self.change, digits) + 0.0:+.{digits}f} {unit}"  # + 0.0: no "-0.0"

    @property
    def error_text(self) -> str:
        """The standard error, and the change divided by it; empty if unknown."""
        if self.standard_error is None or self.in_standard_errors is None:
            return ""
        return f"± {self.standard_error:.2f}, {abs(self.in_standard_errors):.1f} SE"

    @property
    def reason(self) -> str:
        """The figure, and why its change is a regression."""
        unit = "points" if self.unit == "points" else "%"
        error = self.error_text and f" ({self.error_text})"
        return (
            f"{label_of(self.figure)}: {self.text}{error}, worse by more than {self.threshold:g} "
            f"{unit}"
        )


def standard_error(
    key: str,
    old: Sequence[RecordedRun],
    new: Sequence[RecordedRun],
    others: Sequence[RecordedRun] = (),
) -> float | None:
    """Return the standard error of the change of an accuracy between two groups of runs, in points.

    It combines the standard error of a proportion, from the number of validation images, with the
    spread over seeds where a group has several. Each proportion gets one more right and one more
    wrong image (Agresti and Caffo 2000, The American Statistician 54:280), so that 100 % of few
    images is not taken as exact. All runs of a group are validated on the same images, so more runs
    make only the spread over seeds smaller.

    others: more runs to estimate the spread from. None for figures other than accuracy, or where
    neither the images nor a spread is known.
    """
    if THRESHOLDS[figure_of(key).threshold or ""].unit != "points":
        return None
    groups = [[run for run in each if key in run.figures] for each in (old, new)]
    section = "validation_ema" if key.endswith("_ema") else "validation"
    variances = []
    # The images of both are the same, but a report may not have their number.
    counts = [getattr(run.report.results, section).images for runs in groups for run in runs]
    images = next((count for count in counts if count), 0)
    for runs in groups if images else ():
        share = fmean(run.figures[key] for run in runs) / 100
        right = (share * images + 1) / (images + 2)
        variances.append(100**2 * right * (1 - right) / (images + 2))
    squares, degrees = 0.0, 0
    for each in (*groups, others):
        found = spread_over_seeds(key, each)
        if found is not None and found.std is not None:
            squares += (found.n - 1) * found.std**2
            degrees += found.n - 1
    if degrees:
        seeds = [len({run.seed for run in runs}) for runs in groups]
        variances.append(squares / degrees * sum(1 / n for n in seeds))
    # 0 of equal values without a number of images says nothing about chance.
    return math.sqrt(sum(variances)) or None


def spread_over_seeds(key: str, runs: Iterable[RecordedRun]) -> Spread | None:
    """Return the spread of a figure over the seeds of ``runs``; None if no run has it."""
    samples = [(run.seed, run.figures[key]) for run in runs if key in run.figures]
    return spread(samples, by_seed=True) if samples else None


def compare_figure(
    key: str,
    old: float | None,
    new: float | None,
    thresholds: Thresholds,
    error: float | None = None,
) -> Change | None:
    """Compare two values of a figure; None if the figure has no threshold.

    error: the standard error of the change. A change beyond the threshold that is not beyond
    `SIGNIFICANT` standard errors is ``not significant``.
    """
    figure = figure_of(key)
    if figure.threshold is None:
        return None
    limit, unit = thresholds[figure.threshold], THRESHOLDS[figure.threshold].unit
    change = None
    if old is not None and new is not None:
        if unit == "points":
            change = new - old
        elif old > 0:
            change = 100 * (new / old - 1)
    if change is None:
        return Change(key, old, new, None, unit, limit, "not measured")
    # Rounded so that a difference that equals the threshold in print is within it.
    worse = round(change if figure.lower_is_better else -change, 6)
    verdict: Verdict = "regressed" if worse > limit else "improved" if worse < -limit else "ok"
    if error is None:
        return Change(key, old, new, change, unit, limit, verdict)
    if verdict != "ok" and abs(change) <= SIGNIFICANT * error:
        verdict = "not significant"
    return Change(key, old, new, change, unit, limit, verdict, error, change / error)


@dataclass(frozen=True)
class Comparison:
    """Two runs of one name. environment: key -> (old, new), where they differ.

    old_runs, new_runs: the number of runs that the figures are the medians of (accuracy: means
    over the seeds).
    """

    old: RecordedRun
    new: RecordedRun
    changes: tuple[Change, ...]
    environment: Mapping[str, tuple[str, str]]
    old_runs: int = 1
    new_runs: int = 1

    @property
    def regressed(self) -> list[Change]:
        """The figures that got worse by more than their thresholds, and significantly."""
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
    return _compare_groups([old], [new], thresholds, ignored)


def _compare_groups(
    old_runs: Sequence[RecordedRun],
    new_runs: Sequence[RecordedRun],
    thresholds: Thresholds,
    ignored: Collection[str],
) -> Comparison:
    """Compare two groups of equal runs. See `compare_runs`."""
    old, new = _typical(old_runs), _typical(new_runs)
    check_same(old, new, ignored, "compare runs of the same names and options")
    check_finished(old)
    check_finished(new)
    keys = sorted({*old.figures, *new.figures}, key=order)
    changes = []
    for key in keys:
        error = None
        if figure_of(key).threshold and key in old.figures and key in new.figures:
            error = standard_error(key, old_runs, new_runs)
        before, after = old.figures.get(key), new.figures.get(key)
        change = compare_figure(key, before, after, thresholds, error)
        if change is not None:
            changes.append(change)
    if all(change.verdict == "not measured" for change in changes):
        raise WorkspaceError(
            f"{printable(str(old.path))} and {printable(str(new.path))} have no figure in common: "
            "compare runs that measured the same"
        )
    was, now = environment_of(old), environment_of(new)
    environment = {key: (was[key], now[key]) for key in was if was[key] != now[key]}
    return Comparison(old, new, tuple(changes), environment, len(old_runs), len(new_runs))


@dataclass(frozen=True)
class FolderComparison:
    """All runs that two folders have in common.

    not_compared: runs that are in only one of them, in words. left_out: reports that could not be
    read or are of runs that ended early, and why. regressed: the runs of the new folder that got
    worse by more than a threshold, or diverged.
    """

    old: Path
    new: Path
    comparisons: tuple[Comparison, ...]
    not_compared: tuple[str, ...]
    left_out: tuple[str, ...]
    regressed: tuple[str, ...]


def compare_folders(
    old: Path, new: Path, thresholds: Thresholds = DEFAULTS, ignored: Collection[str] = ()
) -> FolderComparison:
    """Compare every run of ``new`` with the run of the same name and settings of ``old``.

    If a folder has several such runs, the median of each figure is used, and the mean over the
    seeds of accuracies. ignored: settings that may differ.

    Raises:
        WorkspaceError: a folder cannot be listed or has no report, or no run is in both.
    """
    diverged = []

    def check_new(run: RecordedRun) -> None:
        if run.diverged:
            diverged.append(f"{Identity.of(run).text} diverged")
        check_finished(run)

    old_runs, old_left_out = read_below(old, check_finished)
    new_runs, new_left_out = read_below(new, check_new)
    left_out = (*old_left_out, *new_left_out)
    old_groups = group_equal(old_runs, ignored)
    unmatched = list(old_groups)
    comparisons, not_compared = [], []
    for runs in group_equal(new_runs, ignored):
        partner = next((o for o in unmatched if _is_same(o[0], runs[0], ignored)), None)
        if partner is None:
            not_compared.append(_why_unmatched(runs[0], old_groups, new, ignored))
            continue
        unmatched.remove(partner)
        try:
            comparisons.append(_compare_groups(partner, runs, thresholds, ignored))
        except WorkspaceError as error:
            not_compared.append(error.message)
    not_compared += [_only_in(old, runs[0]) for runs in unmatched]
    if not comparisons and not diverged:
        raise WorkspaceError(
            f"no run of {printable(str(new))} can be compared with one of {printable(str(old))} "
            f"({[*not_compared, *left_out][0]}): compare folders with finished runs of the same "
            "names and options"
        )
    regressed = [Identity.of(c.new).text for c in comparisons if c.regressed]
    return FolderComparison(
        old, new, tuple(comparisons), tuple(not_compared), left_out, (*regressed, *diverged)
    )


def _is_same(old: RecordedRun, new: RecordedRun, ignored: Collection[str]) -> bool:
    return not differences(old, new, ignored, weights=True)


def _typical(runs: Sequence[RecordedRun]) -> RecordedRun:
    """Return the newest of ``runs`` with the typical value of each figure that any of them has.

    It is the mean over the seeds for figures that vary with the seed, or else the median.
    """
    figures = {}
    for key in {key for run in runs for key in run.figures}:
        values = [run.figures[key] for run in runs if key in run.figures]
        mean = spread_over_seeds(key, runs) if figure_of(key).varies_with_seed else None
        figures[key] = median(values) if mean is None else mean.mean
    return replace(max(runs, key=lambda run: run.ended_at), figures=figures)


def _why_unmatched(
    run: RecordedRun, old_groups: Sequence[list[RecordedRun]], new: Path, ignored: Collection[str]
) -> str:
    identity = Identity.of(run)
    for other, *_ in old_groups:
        if Identity.of(other) == identity:
            changes = differences(other, run, ignored, weights=True)
            return f"{identity.text}: other settings ({listed(changes)})"
    return _only_in(new, run)


def _only_in(folder: Path, run: RecordedRun) -> str:
    return f"{Identity.of(run).text}: only in {printable(str(folder))}"


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return what ``--json`` prints for two runs; docs/reports.md describes its keys."""
    return {
        "schema_version": 1,
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
        "schema_version": 1,
        "old": str(found.old),
        "new": str(found.new),
        "comparisons": [comparison_json(comparison) for comparison in found.comparisons],
        "not_compared": list(found.not_compared),
        "left_out": list(found.left_out),
        "regressed": list(found.regressed),
    }


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print figures, environments and the outcome."""
    print_table(console, comparison_table(comparison))
    _print_environment(console, comparison)
    _print_regressed(console, comparison)
    if not comparison.regressed:
        console.print("No figure regressed.")


def print_folders(console: Console, found: FolderComparison) -> None:
    """Print every pair of runs, the environments once if all have the same, and the outcome."""
    once = all(c.environment == found.comparisons[0].environment for c in found.comparisons)
    for comparison in found.comparisons:
        print_table(console, comparison_table(comparison))
        if not once:
            _print_environment(console, comparison)
        if comparison.regressed:
            _print_regressed(console, comparison)
            console.print()
    if once and found.comparisons:
        _print_environment(console, found.comparisons[0])
    for head, lines in (("not compared: ", found.not_compared), ("left out: ", found.left_out)):
        for line in lines:
            console.print(Text.assemble((head, "bold yellow"), line))
    if found.regressed:
        console.print(Text(f"Regressed: {'; '.join(found.regressed)}", style="bold red"))
    else:
        count = len(found.comparisons)
        console.print(f"No figure of {count} {'run' if count == 1 else 'runs'} regressed.")


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return what was compared, in one line each: the old run, the new one, their weights."""
    notes = []
    for side, run, runs in (
        ("old", comparison.old, comparison.old_runs),
        ("new", comparison.new, comparison.new_runs),
    ):
        of = f"median of {runs} runs (accuracy: mean), the newest " if runs > 1 else ""
        on = run.report.ran_on
        notes.append(f"{side}: {of}{run.label}, {run.time_text}, seed {run.seed}, run on {on}")
    if (weights := weights_texts(comparison.old, comparison.new)) is not None:
        notes.append(f"evaluations of different weights: {weights[0]} -> {weights[1]}")
    return notes


def comparison_warnings(comparison: Comparison) -> list[str]:
    """Return the warnings of both runs, each once."""
    both = (*comparison.old.report.warnings, *comparison.new.report.warnings)
    return list(dict.fromkeys(both))


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per figure: old, new, change and verdict."""
    notes = comparison_notes(comparison)
    if any(change.standard_error is not None for change in comparison.changes):
        notes.append(f"±: standard error (SE) of the change; significant beyond {SIGNIFICANT:g} SE")
    notes += [f"warning: {warning}" for warning in comparison_warnings(comparison)]
    heads = columns("figure", "old", "new", "change", numbers=(1, 2, 3))
    rows = [
        (
            label_of(change.figure),
            value_text(change.figure, change.old),
            value_text(change.figure, change.new),
            Cell(change.text, detail=change.error_text),
            marked(change.verdict),
        )
        for change in comparison.changes
    ]
    title = Identity.of(comparison.new).text
    return Table((*heads, Column("verdict")), rows, title, [*notes, ""])


def environment_table(comparison: Comparison) -> Table:
    """Return one row for each difference of the environments."""
    rows = []
    for key, (old, new) in comparison.environment.items():
        if key == "git_commit":
            old, new = short_commit(old), short_commit(new)
        rows.append((key, old, new))
    heads = (Column("what", wrap=False), *columns("old", "new"))
    return Table(heads, rows, "Environments differ")


def _print_environment(console: Console, comparison: Comparison) -> None:
    if comparison.environment:
        print_table(console, environment_table(comparison))
    else:
        console.print("The environments are the same.")


def _print_regressed(console: Console, comparison: Comparison) -> None:
    for change in comparison.regressed:
        console.print(Text(change.reason, style="bold red"))
