"""Draw a picture with matplotlib, which is imported on first use."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from image_classification.reporting.pictures.names import write_names
from image_classification.reporting.pictures.picture import Bars, Panel, Picture, Series
from image_classification.reporting.pictures.style import BAND, GROUND, STYLE, Look
from image_classification.reporting.published.verdict import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN, _FIRST_IN, _NEXT_IN, _TALLER_IN, _LEGEND_IN = 5.4, 3.1, 1.9, 1.5, 0.21
_MARKED, _TWO_COLUMNS, _LONGEST = 25, 24, 62
_HEADROOM, _NAMES_ROOM = 1.08, 0.3


def paint(picture: Picture, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the picture as files: format (``png``, ``svg``) -> content.

    The same picture gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # One salt a picture, so that ids stay unique where several SVGs share a page.
    with (
        matplotlib.rc_context({**STYLE, "svg.hashsalt": picture.name}),
        warnings.catch_warnings(),
    ):
        # Of a script that the font lacks, as a folder may be named in: boxes are drawn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        lines = len(_words(picture))
        height_in = _FIRST_IN + _NEXT_IN * (len(picture.panels) - 1) + _TALLER_IN * picture.tall
        figure = Figure(
            figsize=(_WIDTH_IN, height_in + _LEGEND_IN * math.ceil(lines / _columns(picture))),
            dpi=150,
            layout="constrained",
        )
        _fill(figure, picture)
        # Laid out once: every format is drawn where the first one was.
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine("none")
        for axes, panel in zip(figure.axes, picture.panels, strict=True):
            write_names(axes, panel)
        files = {}
        for kind in formats:
            content = io.BytesIO()
            # No date in the file: the same run draws the same bytes.
            metadata: Any = {"Date": None, "Title": picture.title} if kind == "svg" else None
            figure.savefig(content, format=kind, metadata=metadata)
            files[kind] = content.getvalue()
    return files


def _fill(figure: Figure, picture: Picture) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = len(picture.panels)
    heights = [1.0] * rows
    all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    all_axes[0].set_title(picture.title)
    all_axes[-1].set_xlabel(picture.x_label)
    bands: dict[str, Any] = {}
    for axes, panel in zip(all_axes, picture.panels, strict=True):
        for band in panel.bands:
            _draw_band(axes, band)
            bands[band.label] = Patch(facecolor=BAND, alpha=0.3, hatch="//", label=band.label)
        for at, series in enumerate(panel.series):
            _draw_series(axes, series, at / len(panel.series))
        for bars in panel.bars:
            _draw_bars(axes, bars)
        for rule in panel.rules:
            look = rule.look
            axes.axvline(rule.x, color=look.color, linestyle=look.line, linewidth=look.width)
        axes.set_ylabel(panel.y_label)
        _set_scales(axes, panel)
    figure.align_ylabels(all_axes)
    patches = {bars.label for panel in picture.panels for bars in panel.bars if not bars.outline}
    shown = [
        Patch(facecolor=GROUND, edgecolor=look.color, hatch=look.hatch, label=_fitting(label))
        if label in patches
        else Line2D([], [], label=_fitting(label), **_pen(look))
        for label, look in picture.entries
    ]
    if len(shown) + len(bands) > 1:
        figure.legend(
            handles=[*shown, *bands.values()], loc="outside lower left", ncols=_columns(picture)
        )


def _words(picture: Picture) -> dict[str, None]:
    """What the legend says, each once."""
    words = dict.fromkeys(label for label, _ in picture.entries)
    return words | dict.fromkeys(band.label for panel in picture.panels for band in panel.bands)


def _columns(picture: Picture) -> int:
    return 2 if max(map(len, _words(picture)), default=0) <= _TWO_COLUMNS else 1


def _fitting(label: str) -> str:
    """The words as a legend can hold them: not too long, and not hidden by a leading line."""
    # matplotlib leaves out what begins with an underscore.
    words = label.lstrip("_")
    kept = _LONGEST // 2
    return words if len(words) <= _LONGEST else f"{words[:kept]}…{words[-kept:]}"


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


def _draw_band(axes: Axes, band: Band) -> None:
    axes.axhspan(band.low, band.high, facecolor=BAND, alpha=0.3, hatch="//", linewidth=0)
    axes.axhline((band.low + band.high) / 2, color=BAND, linewidth=1.0)


def _draw_series(axes: Axes, series: Series, shift: float) -> None:
    pen = _pen(series.look)
    if series.areas:
        axes.scatter(
            series.x,
            series.y,
            s=series.areas,
            marker=series.look.marker,
            facecolors=series.look.color if series.look.filled else GROUND,
            edgecolors=series.look.color,
            linewidths=1.4,
            zorder=3,
        )
    else:
        # A single point has no line to see: it gets a marker in any case.
        if len(series.x) == 1 and not series.look.marker:
            pen["marker"] = "o"
        # Markers on every point of a long curve would hide it.
        every = max(1, len(series.x) // _MARKED)
        axes.plot(series.x, series.y, markevery=(int(shift * every), every), **pen)


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

    axes.set_xscale(panel.x_scale)
    axes.set_yscale(panel.y_scale)
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    for axis, scale in ((axes.xaxis, panel.x_scale), (axes.yaxis, panel.y_scale)):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(plain)
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks)
        axes.set_xticks([], minor=True)
    if panel.x_from_zero:
        farthest = max((max(each.x) for each in panel.series), default=0.0)
        axes.set_xlim(0, 1.02 * farthest or 1.0)
    if panel.y_from_zero:
        highest = [y for each in panel.series for y in each.y if math.isfinite(y)]
        highest += [height for each in panel.bars for height in each.heights]
        highest += [band.high for band in panel.bands]
        axes.set_ylim(0, _HEADROOM * max(highest, default=0.0) or 1.0)
    if panel.y_limits is not None:
        axes.set_ylim(*panel.y_limits)
    # Room for the words beside the points.
    axes.margins(x=0.06)
    if any(each.names for each in panel.series) and panel.x_scale == "linear":
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + _NAMES_ROOM * (high - low))
