"""A run against an earlier one of the same name: which figures got worse."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.measured import figure_of, order
from image_classification.reporting.named_run import check_finished, check_same, device_names
from image_classification.reporting.plain import printable
from image_classification.reporting.run_file import RecordedRun

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
"""Every kind, by the name that `Figure.judged_by` has."""

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
        if figure_of(key).judged_by is not None
    ]


def judge(key: str, old: float | None, new: float | None, thresholds: Thresholds) -> Change:
    """Judge one figure."""
    figure = figure_of(key)
    assert figure.judged_by is not None
    limit = thresholds[figure.judged_by]
    unit = THRESHOLDS[figure.judged_by].unit
    change: float | None = None
    verdict: Verdict = "not measured"
    if old is not None and new is not None:
        if unit == "points":
            change = new - old
        elif old > 0:
            change = 100 * (new / old - 1)
        # A difference that equals the threshold in print is within it.
        worse = None if change is None else round(change if figure.less else -change, 6)
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
    found = {key: _text(environment.get(key)) for key in _SOFTWARE}
    return {"device": device_names(run), "cpu": _text(environment["cpu"]), **found}


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
