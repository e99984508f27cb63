"""Words beside points, moved up where they would cover one another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from image_classification.reporting.pictures.picture import Panel
from image_classification.reporting.pictures.style import BAND, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_PT = 9.0
_LINE_PT = 10.5
_CHARACTER_PT = 0.62 * _SIZE_PT
_Box = tuple[float, float, float, float]


def write_names(axes: Axes, panel: Panel) -> None:
    """Write the names of ``panel``; the axes' limits and place on the figure must be final."""
    points_per_pixel = 72.0 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    # Asked for, so that the limits are those of all that is drawn.
    axes.get_xlim(), axes.get_ylim()
    sized = any(series.areas for series in panel.series)
    wanted: list[tuple[float, float, str, tuple[float, float], float]] = []
    markers: list[_Box] = []
    for series in panel.series:
        areas = series.areas or (25.0,) * len(series.x)
        names = series.names or ("",) * len(series.x)
        for name, x, y, area in zip(names, series.x, series.y, areas, strict=True):
            left, bottom = axes.transData.transform((x, y)) * points_per_pixel
            radius = math.sqrt(area) / 2
            if series.areas:
                markers.append((left - radius, bottom - radius, 2 * radius, 2 * radius))
            if name:
                wanted.append((bottom, left, name, (x, y), radius))
    placed: list[_Box] = []
    for bottom, left, name, point, radius in sorted(wanted):
        # Small markers stand on a curve: beside and below it there is less in the way.
        away = (radius + 3.0, -3.0 if sized else -9.0)
        box = (left + away[0], bottom + away[1], len(name) * _CHARACTER_PT, _LINE_PT)
        moved = box
        while hit := next((each for each in (*markers, *placed) if _overlap(moved, each)), None):
            moved = (moved[0], hit[1] + hit[3], moved[2], moved[3])
        placed.append(moved)
        lifted = moved[1] - box[1]
        axes.annotate(
            name,
            point,
            (away[0], away[1] + lifted),
            textcoords="offset points",
            fontsize=_SIZE_PT,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": BAND, "linewidth": 0.7} if lifted else None,
        )


def _overlap(one: _Box, other: _Box) -> bool:
    return (
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3] - 0.01
        and other[1] < one[1] + one[3] - 0.01
    )
