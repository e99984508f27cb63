"""Pictures as plain values: drawn by `paint`, checked by tests without rendering.

Colors are the Okabe-Ito palette, which color-blind readers can tell apart. Line styles, markers
and hatches repeat every distinction for black and white prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Literal

from image_classification.reporting.published.verdict import Band

COLORS = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "ink": "#222222",
    "band": "#7f7f7f",
    "grid": "#dddddd",
    "ground": "#ffffff",
}
"""All colors of the pictures by name; a page may replace each of them in dark mode."""

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK, BAND, GRID, GROUND = COLORS.values()

MAX_POINTS = 1200
"""More than the width of a picture in pixels: longer curves are averaged down to this many."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Look:
    """Appearance of a series. line: matplotlib line style, empty for none. width: in points.

    filled: draw markers filled; otherwise their inside has the background color.
    """

    color: str
    line: str = "-"
    marker: str = ""
    filled: bool = True
    width: float = 1.6
    hatch: str = ""

    def with_line(self, line: str, *, filled: bool = True) -> Look:
        """Return the same color and marker with another line style."""
        return replace(self, line=line, filled=filled)


TRAINING = Look(BLUE)
RAW = Look(VERMILION, "--", "o")
AVERAGED = Look(GREEN, ":", "s")
RESUMED = Look(INK, ":", width=0.9)


def run_looks(count: int) -> list[Look]:
    """Return the looks of ``count`` runs; the first 42 differ from each other."""
    colors, markers = (BLUE, VERMILION, GREEN, PURPLE, INK, ORANGE, SKY), "o^sDvP"
    hatches = ("///", "\\\\\\", "...", "xxx", "---", "+++")
    return [Look(colors[i % 7], marker=markers[i % 6], hatch=hatches[i % 6]) for i in range(count)]


def published_look(index: int) -> Look:
    """Return the look of the ``index``-th table of published points."""
    return Look(INK, ":", "*ph8<>"[index % 6], filled=False, width=1.0)


@dataclass(frozen=True)
class Series:
    """Points joined by a line, unless ``look.line`` is empty. NaN in y leaves a gap.

    areas: marker area of each point in square points; empty for the default size.
    names: text beside each point; those in names_above are written above it.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    look: Look
    areas: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    names_above: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Bars:
    """A histogram with ``len(heights) + 1`` edges. outline: draw it without filling."""

    label: str
    edges: tuple[float, ...]
    heights: tuple[float, ...]
    look: Look
    outline: bool = False


@dataclass(frozen=True)
class VerticalLine:
    """A line over the full height of the panel at ``x``."""

    label: str
    x: float
    look: Look


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Panels of a picture are stacked and share the x axis.

    x_ticks: the only tick labels of a logarithmic x axis.
    """

    y_label: str
    series: tuple[Series, ...] = ()
    bands: tuple[Band, ...] = ()
    bars: tuple[Bars, ...] = ()
    lines: tuple[VerticalLine, ...] = ()
    scale: Literal["linear", "log"] = "linear"
    x_from_zero: bool = False
    y_from_zero: bool = False
    x_ticks: tuple[float, ...] = ()
    y_limits: tuple[float, float] | None = None

    def alt(self, x_label: str) -> str:
        """Describe the panel in one sentence."""
        parts = [_series_alt(series) for series in self.series if series.label]
        for bars in self.bars:
            highest = bars.heights.index(max(bars.heights))
            parts.append(
                f"{bars.label}: from {bars.edges[0]:.4g} to {bars.edges[-1]:.4g}, most between "
                f"{bars.edges[highest]:.4g} and {bars.edges[highest + 1]:.4g}"
            )
        parts += [f"{line.label} at {line.x:.4g}" for line in self.lines]
        parts += [band.label for band in self.bands]
        return f"{self.y_label} over {x_label}: {'; '.join(parts)}."


@dataclass(frozen=True)
class Picture:
    """One picture. name: stem of its files. notes: sentences for the caption.

    legend: labels with their looks; None to derive it from the panels. tall: add height for
    crowded points.
    """

    name: str
    title: str
    x_label: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    legend: tuple[tuple[str, Look], ...] | None = None
    tall: bool = False

    @property
    def entries(self) -> tuple[tuple[str, Look], ...]:
        """The legend's entries without duplicates; bands are not among them."""
        if self.legend is not None:
            return self.legend
        looks: dict[str, Look] = {}
        for panel in self.panels:
            parts: tuple[Series | Bars | VerticalLine, ...] = (
                *panel.series,
                *panel.bars,
                *panel.lines,
            )
            for part in parts:
                looks.setdefault(part.label, part.look)
        looks.pop("", None)
        return tuple(looks.items())

    @property
    def alt(self) -> str:
        """The picture as text, for readers who cannot see it."""
        return f"{self.title}. {' '.join(panel.alt(self.x_label) for panel in self.panels)}"


@dataclass(frozen=True)
class LeftOut:
    """A picture that is not drawn, and why."""

    name: str
    title: str
    why: str


def _series_alt(series: Series) -> str:
    if len(series.names) == len(series.x) <= 12:
        named = zip(series.names, series.x, series.y, strict=True)
        points = ", ".join(f"{name} at {x:.4g}, {y:.4g}".lstrip() for name, x, y in named)
        return f"{series.label}: {points}"
    xy = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x + y)]
    (first_x, first_y), (last_x, last_y) = xy[0], xy[-1]
    if len(xy) == 1:
        return f"{series.label}: {first_y:.4g} at {first_x:.4g}"
    values = [y for _, y in xy]
    return (
        f"{series.label}: from {first_y:.4g} at {first_x:.4g} to {last_y:.4g} at {last_x:.4g}, "
        f"lowest {min(values):.4g}, highest {max(values):.4g}"
    )


def thinned(points: Points) -> tuple[Points, int]:
    """Return about `MAX_POINTS` means of neighboring points, and the most points in one mean.

    A point with NaN in y is a gap: it is kept, and no mean spans it.
    """
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return points, 1
    means: Points = []
    for is_finite, group in groupby(points, key=lambda point: math.isfinite(point[1])):
        run = list(group)
        if not is_finite:
            means += run
            continue
        for start in range(0, len(run), size):
            x, y = zip(*run[start : start + size], strict=True)
            means.append((fmean(x), fmean(y)))
    return means, size


def thinning_note(sizes: list[int]) -> list[str]:
    """Return the caption of curves with means of up to ``max(sizes)`` records, if any."""
    most = max(sizes)
    return [f"Long curves are drawn as means of up to {most} records."] if most > 1 else []
