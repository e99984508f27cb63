"""What a picture shows, as plain values: drawn by `paint`, checked by tests without a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from image_classification.reporting.pictures.style import Look
from image_classification.reporting.published.verdict import Band


@dataclass(frozen=True)
class Series:
    """Points joined by a line, unless ``look.line`` is empty. NaN in y leaves a gap.

    areas: of the markers, in square points, one a point; empty: one size. names: words beside the
    points.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    look: Look
    areas: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bars:
    """A histogram: ``len(edges) == len(heights) + 1``; outline: drawn without filling."""

    label: str
    edges: tuple[float, ...]
    heights: tuple[float, ...]
    look: Look
    outline: bool = False


@dataclass(frozen=True)
class Rule:
    """A line across the whole panel at one x."""

    label: str
    x: float
    look: Look


@dataclass(frozen=True)
class Panel:
    """One pair of axes; the panels of a picture lie below one another and share the x axis.

    x_ticks: the only values written on a logarithmic x axis.
    """

    y_label: str
    series: tuple[Series, ...] = ()
    bands: tuple[Band, ...] = ()
    bars: tuple[Bars, ...] = ()
    rules: tuple[Rule, ...] = ()
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    x_from_zero: bool = False
    y_from_zero: bool = False
    x_ticks: tuple[float, ...] = ()
    y_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """One picture. name: its files' stem. notes: what a reader must know, one sentence each.

    legend: words with their looks; None: those of the series, bars and rules. tall: half as high
    again, where points crowd.
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
        """The legend's lines, each once; bands come beside them."""
        if self.legend is not None:
            return self.legend
        shown: dict[str, Look] = {}
        for panel in self.panels:
            parts: tuple[Series | Bars | Rule, ...] = (*panel.series, *panel.bars, *panel.rules)
            for part in parts:
                shown.setdefault(part.label, part.look)
        shown.pop("", None)
        return tuple(shown.items())

    @property
    def alt(self) -> str:
        """The picture in words, for those who do not see it."""
        told = [_panel_alt(self.x_label, panel) for panel in self.panels]
        return f"{self.title}. {' '.join(told)}"


@dataclass(frozen=True)
class LeftOut:
    """A picture that is not drawn, and why."""

    name: str
    title: str
    why: str


def _panel_alt(x_label: str, panel: Panel) -> str:
    parts = [_series_alt(series) for series in panel.series if series.label]
    for bars in panel.bars:
        highest = max(range(len(bars.heights)), key=bars.heights.__getitem__)
        parts.append(
            f"{bars.label}: from {bars.edges[0]:.4g} to {bars.edges[-1]:.4g}, most between "
            f"{bars.edges[highest]:.4g} and {bars.edges[highest + 1]:.4g}"
        )
    parts += [f"{rule.label} at {rule.x:.4g}" for rule in panel.rules]
    parts += [band.label for band in panel.bands]
    return f"{panel.y_label} over {x_label}: {'; '.join(parts)}."


def _series_alt(series: Series) -> str:
    points = [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    if series.names and len(series.names) == len(series.x) <= 12:
        named = zip(series.names, series.x, series.y, strict=True)
        told = ", ".join(f"{name} at {x:.4g}, {y:.4g}".lstrip() for name, x, y in named)
        return f"{series.label}: {told}"
    if len(points) == 1:
        return f"{series.label}: {points[0][1]:.4g} at {points[0][0]:.4g}"
    values = [y for _, y in points]
    return (
        f"{series.label}: from {points[0][1]:.4g} at {points[0][0]:.4g} to {points[-1][1]:.4g} at "
        f"{points[-1][0]:.4g}, lowest {min(values):.4g}, highest {max(values):.4g}"
    )


MOST_POINTS = 1200
"""More than a picture has pixels across: longer curves are means of neighbouring records."""


def thinned(points: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """Return about `MOST_POINTS` means of neighbouring points, and of how many each is at most.

    NaN in y is a gap: it stays, and no mean reaches over it.
    """
    group = -(-len(points) // MOST_POINTS)
    if group <= 1:
        return points, 1
    means: list[tuple[float, float]] = []
    part: list[tuple[float, float]] = []

    def close() -> None:
        if part:
            means.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
            part.clear()

    for point in points:
        if math.isfinite(point[1]):
            part.append(point)
            if len(part) == group:
                close()
        else:
            close()
            means.append(point)
    close()
    return means, group


def take(looks: tuple[Look, ...], count: int) -> list[Look]:
    """Return ``count`` looks, beginning again where there are no more."""
    return list(islice(cycle(looks), count))
