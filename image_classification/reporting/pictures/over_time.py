"""Throughput and power over the time of day that the run took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from image_classification.reporting.pictures.picture import (
    LeftOut,
    Panel,
    Picture,
    Rule,
    Series,
    take,
    thinned,
)
from image_classification.reporting.pictures.source import RunData, real
from image_classification.reporting.pictures.style import RESUMED, RUNS, TRAINING, Look

_NAME, _TITLE = "over_time", "Throughput and power over time"
_UNITS = ((600.0, 1.0, "s"), (3.0 * 3600, 60.0, "min"), (math.inf, 3600.0, "h"))
_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Track:
    """A run's samples in seconds since it began; starts: those of its later processes."""

    speed: _Points
    power: _Points
    starts: tuple[float, ...]


def over_time(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw images/s, and power where it was measured."""
    tracks = [_track(run) for run in runs]
    measured = [point for track in tracks for point in (*track.speed, *track.power)]
    ends_s = [x for x, y in measured if math.isfinite(y)]
    if not ends_s:
        return LeftOut(_NAME, _TITLE, "no record of throughput or power has a time")
    _, unit_s, unit = next(entry for entry in _UNITS if max(ends_s) < entry[0])
    notes, panels, groups = [], [], []
    for y_label, points, absent in (
        ("images/s", [track.speed for track in tracks], "images/s over time: not measured."),
        ("power, W", [track.power for track in tracks], "power: not measured."),
    ):
        series, group = _series(runs, points, unit_s)
        groups.append(group)
        if not series:
            notes.append(absent)
            continue
        rules = _restarts(tracks, unit_s)
        panels.append(Panel(y_label, series, rules=rules, x_from_zero=True, y_from_zero=True))
    if max(groups) > 1:
        notes.append(f"Long curves are drawn as means of up to {max(groups)} records.")
    has_power = any(panel.y_label.startswith("power") for panel in panels)
    if has_power:
        notes.append("Power is that of the devices of rank 0's node together.")
    title = _TITLE if has_power else "Throughput over time"
    return Picture(_NAME, title, f"time since the start, {unit}", tuple(panels), tuple(notes))


def _series(
    runs: Sequence[RunData], all_points: list[_Points], unit_s: float
) -> tuple[tuple[Series, ...], int]:
    looks = take(RUNS, len(runs)) if len(runs) > 1 else [TRAINING]
    series, groups = [], [1]
    for run, points, look in zip(runs, all_points, looks, strict=True):
        if not any(math.isfinite(y) for _, y in points):
            continue
        kept, group = thinned(points)
        groups.append(group)
        label = run.label if len(runs) > 1 else "measured"
        series.append(
            Series(label, tuple(x / unit_s for x, _ in kept), tuple(y for _, y in kept), look)
        )
    return tuple(series), max(groups)


def _restarts(tracks: list[_Track], unit_s: float) -> tuple[Rule, ...]:
    if len(tracks) > 1:
        return ()
    look: Look = RESUMED
    return tuple(Rule("started again", at / unit_s, look) for at in tracks[0].starts)


def _track(run: RunData) -> _Track:
    times = [timed.unix_time_s for timed in run.records if timed.unix_time_s is not None]
    if not times:
        return _Track([], [], ())
    begin_s = min(times)
    starts = [t.unix_time_s - begin_s for t in run.of("start") if t.unix_time_s is not None][1:]
    samples = _telemetry(run, "images_per_s", begin_s)
    if not any(math.isfinite(y) for _, y in samples):
        samples = [
            (t.unix_time_s - begin_s, speed)
            for t in run.of("step")
            if t.unix_time_s is not None
            and (speed := real(t.record.values.get("images_per_s"))) is not None
        ]
    power = _telemetry(run, "power_w", begin_s)
    return _Track(_broken(samples, starts), _broken(power, starts), tuple(starts))


def _telemetry(run: RunData, key: str, begin_s: float) -> _Points:
    points = []
    for timed in run.of("telemetry"):
        values = timed.record.values
        end_s = real(values.get("unix_time_s"))
        value = real(values.get(key))
        if end_s is not None:
            middle_s = end_s - (real(values.get("span_s")) or 0.0) / 2 - begin_s
            points.append((max(0.0, middle_s), math.nan if value is None else value))
    return points


def _broken(points: _Points, starts: Sequence[float]) -> _Points:
    """Leave a gap where the run was not running."""
    return sorted([*points, *((at, math.nan) for at in starts)] if points else points)
