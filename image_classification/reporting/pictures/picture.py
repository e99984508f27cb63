"""Pictures as plain values: drawn by `draw`, checked by tests without rendering.

Colors are the Okabe-Ito palette, which color-blind readers can tell apart. Line styles, markers
and hatches repeat every distinction for black and white prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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


def run_looks(count: int) -> list[Look]:
    """Return the looks of ``count`` runs; the first 42 differ from each other."""
    colors, markers = (BLUE, VERMILION, GREEN, PURPLE, INK, ORANGE, SKY), "o^sDvP"
    hatches = ("///", "\\\\\\", "...", "xxx", "---", "+++")
    return [Look(colors[i % 7], marker=markers[i % 6], hatch=hatches[i % 6]) for i in range(count)]


@dataclass(frozen=True)
class Series:
    """Points joined by a line, unless ``look.line`` is empty. NaN in y leaves a gap.

    areas: marker area of each point in square points; empty for the default size.
    names: text beside each point; those in names_above are written above it. details: text of
    each point that only a page shows, under the pointer. errors: standard deviation of each y,
    drawn as a band.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    look: Look
    areas: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    names_above: frozenset[str] = frozenset()
    details: tuple[str, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def alt(self) -> str:
        """The series in words."""
        if len(self.names) == len(self.x) <= 12:
            named = zip(self.names, self.x, self.y, strict=True)
            points = ", ".join(f"{name} at {x:.4g}, {y:.4g}".lstrip() for name, x, y in named)
            return f"{self.label}: {points}"
        xy = [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x + y)]
        (first_x, first_y), (last_x, last_y) = xy[0], xy[-1]
        if len(xy) == 1:
            return f"{self.label}: {first_y:.4g} at {first_x:.4g}"
        values = [y for _, y in xy]
        return (
            f"{self.label}: from {first_y:.4g} at {first_x:.4g} to {last_y:.4g} at {last_x:.4g}, "
            f"lowest {min(values):.4g}, highest {max(values):.4g}"
        )


@dataclass(frozen=True)
class Bars:
    """A histogram with ``len(heights) + 1`` edges; only an outline if the panel has several."""

    label: str
    edges: tuple[float, ...]
    heights: tuple[float, ...]
    look: Look

    @property
    def alt(self) -> str:
        """The histogram in words."""
        highest = self.heights.index(max(self.heights))
        return (
            f"{self.label}: from {self.edges[0]:.4g} to {self.edges[-1]:.4g}, most between "
            f"{self.edges[highest]:.4g} and {self.edges[highest + 1]:.4g}"
        )


@dataclass(frozen=True)
class VerticalLine:
    """A line over the full height of the panel at ``x``."""

    label: str
    x: float
    look: Look


@dataclass(frozen=True)
class Spans:
    """Stretches of the x axis, (start, end) each, shaded over the full height of the panel.

    With a marker in ``look``, only their starts are marked, at the lower edge.
    """

    label: str
    ranges: tuple[tuple[float, float], ...]
    look: Look


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Panels of a picture are stacked and share the x axis.

    x_ticks: the only tick labels of a logarithmic x axis. y_limits: None, or an upper limit of
    None, to derive them from the data. marks_clipped: points above the limits are marked at the
    upper edge.
    """

    y_label: str
    series: tuple[Series, ...] = ()
    bands: tuple[Band, ...] = ()
    bars: tuple[Bars, ...] = ()
    lines: tuple[VerticalLine, ...] = ()
    spans: tuple[Spans, ...] = ()
    scale: Literal["linear", "log"] = "linear"
    x_from_zero: bool = False
    x_ticks: tuple[float, ...] = ()
    y_limits: tuple[float, float | None] | None = None
    marks_clipped: bool = False

    def alt(self, x_label: str) -> str:
        """Describe the panel in one sentence."""
        parts = [series.alt for series in self.series if series.label]
        parts += [bars.alt for bars in self.bars]
        parts += [f"{line.label} at {line.x:.4g}" for line in self.lines]
        parts += [f"{spans.label}: {len(spans.ranges)} times" for spans in self.spans]
        parts += [band.label for band in self.bands]
        return f"{self.y_label} over {x_label}: {'; '.join(parts)}."


@dataclass(frozen=True)
class Picture:
    """One picture. name: stem of its files. notes: sentences for the caption.

    legend: labels with their looks; None to derive it from the panels. tall: add height for
    crowded points. steps_per_epoch: for a picture over epochs, to show the step of a point too.
    """

    name: str
    title: str
    x_label: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    legend: tuple[tuple[str, Look], ...] | None = None
    tall: bool = False
    steps_per_epoch: int | None = None

    @property
    def entries(self) -> tuple[tuple[str, Look], ...]:
        """The legend's entries without duplicates; bands are not among them."""
        if self.legend is not None:
            return self.legend
        looks: dict[str, Look] = {}
        for panel in self.panels:
            looks |= {each.label: each.look for each in panel.series}
            looks |= {each.label: each.look for each in panel.bars}
            looks |= {each.label: each.look for each in panel.lines}
            looks |= {each.label: each.look for each in panel.spans}
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
