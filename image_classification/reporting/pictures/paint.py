"""Draw a picture with matplotlib, which is imported on first use."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from image_classification.reporting.pictures.picture import (
    BAND,
    GRID,
    GROUND,
    INK,
    Bars,
    Look,
    Panel,
    Picture,
    Series,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN, _FIRST_PANEL_IN, _NEXT_PANEL_IN, _TALL_IN, _LEGEND_LINE_IN = 5.4, 3.1, 1.9, 1.5, 0.21
_MAX_MARKERS, _TWO_COLUMN_CHARS, _MAX_LABEL_CHARS = 25, 24, 62
_Y_HEADROOM, _NAMES_ROOM = 1.08, 0.3

_RC_PARAMS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    # A dollar sign in a folder's name does not start a formula.
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def paint(picture: Picture, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the picture's files: format (``png``, ``svg``) -> content.

    The same picture gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # One salt per picture keeps ids unique when several SVGs share a page.
    params: Any = {**_RC_PARAMS, "svg.hashsalt": picture.name}
    with matplotlib.rc_context(params), warnings.catch_warnings():
        # Folder names may hold scripts that the font lacks; matplotlib draws boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        labels = [label for label, _ in picture.entries]
        labels += {band.label for panel in picture.panels for band in panel.bands}
        columns = 2 if max(map(len, labels), default=0) <= _TWO_COLUMN_CHARS else 1
        height_in = (
            _FIRST_PANEL_IN
            + _NEXT_PANEL_IN * (len(picture.panels) - 1)
            + _TALL_IN * picture.tall
            + _LEGEND_LINE_IN * math.ceil(len(labels) / columns)
        )
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=150, layout="constrained")
        _draw(figure, picture, columns)
        files = {}
        for kind in formats:
            content = io.BytesIO()
            # Without a date, the same run gives the same bytes.
            metadata: Any = {"Date": None, "Title": picture.title} if kind == "svg" else None
            figure.savefig(content, format=kind, metadata=metadata)
            files[kind] = content.getvalue()
    return files


def _draw(figure: Figure, picture: Picture, columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    all_axes = figure.subplots(len(picture.panels), 1, sharex=True, squeeze=False)[:, 0]
    all_axes[0].set_title(picture.title)
    all_axes[-1].set_xlabel(picture.x_label)
    bands: dict[str, Patch] = {}
    for axes, panel in zip(all_axes, picture.panels, strict=True):
        for band in panel.bands:
            fill: Any = {"facecolor": BAND, "alpha": 0.3, "hatch": "//"}
            axes.axhspan(band.low, band.high, linewidth=0, **fill)
            axes.axhline((band.low + band.high) / 2, color=BAND, linewidth=1.0)
            bands[band.label] = Patch(label=band.label, **fill)
        for index, series in enumerate(panel.series):
            _draw_series(axes, series, index / len(panel.series))
        for bars in panel.bars:
            _draw_bars(axes, bars)
        for line in panel.lines:
            look = line.look
            axes.axvline(line.x, color=look.color, linestyle=look.line, linewidth=look.width)
        axes.set_ylabel(panel.y_label)
        _set_scales(axes, panel)
    figure.align_ylabels(all_axes)
    filled = {bars.label for panel in picture.panels for bars in panel.bars if not bars.outline}
    handles = [
        Patch(facecolor=GROUND, edgecolor=look.color, hatch=look.hatch, label=_shortened(label))
        if label in filled
        else Line2D([], [], label=_shortened(label), **_pen(look))
        for label, look in picture.entries
    ]
    if len(handles) + len(bands) > 1:
        figure.legend(handles=[*handles, *bands.values()], loc="outside lower left", ncols=columns)


def _shortened(label: str) -> str:
    # matplotlib leaves out labels that begin with an underscore.
    text = label.lstrip("_")
    half = _MAX_LABEL_CHARS // 2
    return text if len(text) <= _MAX_LABEL_CHARS else f"{text[:half]}…{text[-half:]}"


def _pen(look: Look) -> dict[str, Any]:
    return {
        "color": look.color,
        "linestyle": look.line or "none",
        "linewidth": look.width,
        "marker": look.marker or None,
        "markersize": 5.0,
        "markerfacecolor": look.color if look.filled else GROUND,
        "markeredgecolor": look.color,
    }


def _draw_series(axes: Axes, series: Series, shift: float) -> None:
    look = series.look
    if series.areas:
        axes.scatter(
            series.x,
            series.y,
            s=series.areas,
            marker=look.marker,
            facecolors=look.color if look.filled else GROUND,
            edgecolors=look.color,
            linewidths=1.4,
            zorder=3,
        )
    else:
        pen = _pen(look)
        # A single point has no line and needs a marker.
        if len(series.x) == 1 and not look.marker:
            pen["marker"] = "o"
        # Markers on every point of a long curve would hide it.
        every = max(1, len(series.x) // _MAX_MARKERS)
        axes.plot(series.x, series.y, markevery=(int(shift * every), every), **pen)
    for index, name in enumerate(series.names):
        # Beside a sized marker; below and right of a point on a curve.
        radius_pt = math.sqrt(series.areas[index]) / 2 if series.areas else 2.5
        above = name in series.names_above
        axes.annotate(
            name,
            (series.x[index], series.y[index]),
            (0 if above else radius_pt + 3, radius_pt + 2 if above else -3 if series.areas else -9),
            textcoords="offset points",
            fontsize=9,
            ha="center" if above else "left",
        ).set_in_layout(False)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    look = bars.look
    axes.stairs(
        bars.heights,
        bars.edges,
        fill=not bars.outline,
        facecolor=GROUND,
        edgecolor=look.color,
        linestyle=look.line,
        linewidth=look.width,
        hatch=None if bars.outline else look.hatch,
    )


def _set_scales(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xscale=panel.scale, yscale=panel.scale)
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    for axis in (axes.xaxis, axes.yaxis):
        if panel.scale == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(plain)
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks)
        axes.set_xticks([], minor=True)
    if panel.x_from_zero:
        axes.set_xlim(0, 1.02 * max((max(each.x) for each in panel.series), default=0.0) or 1.0)
    if panel.y_from_zero:
        values = [y for each in panel.series for y in each.y if math.isfinite(y)]
        values += [height for each in panel.bars for height in each.heights]
        values += [band.high for band in panel.bands]
        axes.set_ylim(0, _Y_HEADROOM * max(values, default=0.0) or 1.0)
    if panel.y_limits is not None:
        axes.set_ylim(*panel.y_limits)
    axes.margins(x=0.06)
    if panel.scale == "linear" and any(each.names for each in panel.series):
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + _NAMES_ROOM * (high - low))
