"""Pictures for the pages of several runs: mean curves of groups, and figures over a history."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, linear_regression, stdev

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.compare.groups import Group
from image_classification.reporting.compare.history import Entry, Line, shown_figures
from image_classification.reporting.pictures import benchmarks, curves
from image_classification.reporting.pictures.picture import (
    BLUE,
    INK,
    VERMILION,
    LeftOut,
    Look,
    Panel,
    Picture,
    Series,
    run_looks,
)
from image_classification.reporting.pictures.source import RunData, with_labels, with_records
from image_classification.reporting.published.verdict import Band
from image_classification.reporting.report import REPORT_NAME
from image_classification.reporting.run_folder import RecordedRun

_MAX_TICKS = 10
_MIN_FOR_TREND = 3
_LINES = ("-", "--", ":", "-.")


def combined_pictures(groups: Sequence[Group]) -> list[Picture | LeftOut]:
    """Return the mean curves of every group, and training speed over the number of devices."""
    data = [[_data(run) for run in group.runs] for group in groups]
    every = with_labels([run for runs in data for run in runs]) if data else []
    return [_mean_curves(data), benchmarks.scaling(every)]


def _data(run: RecordedRun) -> RunData:
    """Return a run with its records, if they are beside its report and can be read."""
    if run.path.name == REPORT_NAME:
        try:
            return with_records(run.path.parent, run.report)
        except WorkspaceError:
            pass
    return RunData(run.label, run.report)


def _mean_curves(groups: Sequence[Sequence[RunData]]) -> Picture | LeftOut:
    """Plot mean and standard deviation of top-1 and training loss over the runs of each group."""
    name, title = "mean_curves", "Training curves, means of the runs"
    labels = (
        [""] if len(groups) == 1 else [run.label for run in with_labels([g[0] for g in groups])]
    )
    looks = run_looks(len(groups))
    panels = []
    for y_label, quantities in (
        ("top-1, percent", (("validation", "top1", ""), ("validation_ema", "top1", "EMA"))),
        ("training loss", (("epoch", "loss", ""),)),
    ):
        series: list[Series] = []
        bands: dict[Band, None] = {}
        for at, (runs, label) in enumerate(zip(groups, labels, strict=True)):
            color, line = looks[at].color, _LINES[at % len(_LINES)]
            for kind, key, suffix in quantities:
                found = _mean_series([run.over_epochs(kind, key) for run in runs])
                if found is not None:
                    text = ", ".join(part for part in (label, suffix) if part) or "mean"
                    look = Look(color, line, width=0.9 if suffix else 1.6)
                    series.append(replace(found, label=text, look=look))
            if key == "top1":
                bands |= {band: None for run in runs for band in run.bands(key)}
        if series:
            panels.append(Panel(y_label, tuple(series), tuple(bands), x_from_zero=True))
        if series and key == "top1" and (bands or len(series) > 1):
            panels.append(curves.close_up(panels[-1]))
    if not panels:
        return LeftOut(name, title, "no run has readable records (metrics.jsonl) beside its report")
    several = max(map(len, groups)) > 1
    notes = ["Bands: the standard deviation over the runs."] if several else []
    absent = [run.label for runs in groups for run in runs if not run.records]
    if absent:
        notes.append(f"Without {', '.join(absent)}: no readable records (metrics.jsonl).")
    return Picture(name, title, "epochs done", tuple(panels), tuple(notes))


def _mean_series(all_points: Sequence[Sequence[tuple[float, float]]]) -> Series | None:
    """Return the mean where every recorded curve has a value; None if no curve was recorded."""
    recorded = [dict(points) for points in all_points if points]
    values: dict[float, list[float]] = defaultdict(list)
    for curve in recorded:
        for x, y in curve.items():
            values[round(x, 6)].append(y)
    points = [(x, ys) for x, ys in sorted(values.items()) if len(ys) == len(recorded)]
    if not points:
        return None
    errors = tuple(stdev(ys) for _, ys in points) if len(recorded) > 1 else ()
    epochs, means = tuple(x for x, _ in points), tuple(fmean(ys) for _, ys in points)
    return Series("", epochs, means, Look(BLUE), errors=errors)


def history_picture(line: Line, name: str) -> Picture | None:
    """Plot the main figures of a line's finished runs, oldest first, with trend and regressions.

    name: unique within the page. None for fewer than two finished runs.
    """
    entries = [entry for entry in line.entries if entry.run.finished]
    panels = []
    for key, head in shown_figures(line).items():
        known = [(at, e) for at, e in enumerate(entries, 1) if key in e.run.figures]
        if len(known) < 2:
            continue
        x = tuple(float(at) for at, _ in known)
        y = tuple(entry.run.figures[key] for _, entry in known)
        about = tuple(f"{at}, {e.run.label}, {e.run.time_text}" for at, e in known)
        series = [Series("measured", x, y, Look(BLUE, "-", "o"), details=about)]
        if len(known) >= _MIN_FOR_TREND:
            slope, start = linear_regression(x, y)
            ends = (x[0], x[-1])
            trend = tuple(start + slope * at for at in ends)
            series.append(Series("trend", ends, trend, Look(INK, "--", width=1.0)))
        worse = [(x[i], y[i]) for i, (_, entry) in enumerate(known) if _is_flagged(entry, key)]
        if worse:
            runs, values = zip(*worse, strict=True)
            look = Look(VERMILION, "", "X", width=1.0)
            series.append(Series("regressed", runs, values, look))
        ticks = tuple(
            float(at) for at in range(1, len(entries) + 1, 1 + len(entries) // _MAX_TICKS)
        )
        panels.append(Panel(head, tuple(series), x_ticks=ticks))
    return Picture(name, "Runs, oldest first", "run", tuple(panels)) if panels else None


def _is_flagged(entry: Entry, key: str) -> bool:
    return any(flag.change.figure == key for flag in entry.flags)
