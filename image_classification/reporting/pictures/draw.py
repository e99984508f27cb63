"""Draw all pictures of one run or several, as files and as SVG elements of an HTML page.

matplotlib is imported on first use.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classification.core.files import explained
from image_classification.reporting.pictures import benchmarks, curves
from image_classification.reporting.pictures.picture import (
    BAND,
    COLORS,
    GRID,
    GROUND,
    INK,
    LeftOut,
    Look,
    Panel,
    Picture,
    Series,
)
from image_classification.reporting.pictures.source import RunData, with_labels, with_records
from image_classification.reporting.report import RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

FORMATS = ("png", "svg")

_LEARNS = frozenset({"convergence"})
_TRAINS = _LEARNS | {"benchmark_training", "benchmark_training_short"}

_Kind = Callable[[Sequence[RunData]], "Picture | LeftOut"]
_KINDS: Mapping[_Kind, frozenset[str]] = {
    curves.loss: _LEARNS,
    curves.accuracy: _LEARNS,
    curves.learning_rate: _LEARNS,
    curves.throughput: _TRAINS,
    curves.over_time: _TRAINS,
    curves.step_time: _TRAINS,
    benchmarks.latency: frozenset({"benchmark_inference"}),
    benchmarks.accuracy_cost: _LEARNS | {"evaluate"},
    benchmarks.scaling: frozenset(),
}
"""Every kind of picture, with the modes of a single run that it applies to."""

_WIDTH_IN, _FIRST_PANEL_IN, _NEXT_PANEL_IN, _TALL_IN, _LEGEND_LINE_IN = 5.4, 2.9, 1.1, 1.5, 0.21
_MIN_HEIGHT_IN = 4.4  # most pictures have this height, so that they form an even grid
_MAX_MARKERS, _TWO_COLUMN_CHARS, _MAX_LABEL_CHARS = 25, 24, 62

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), GROUND),
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor"), INK),
    # A dollar sign in a folder's name does not start a formula.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.06,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.markersize": 5.0,
}


@dataclass(frozen=True)
class Drawn:
    """A picture and its SVG document, which is empty if only PNG was asked for.

    chart: where its points are in the SVG and what they are, for the script of a page that shows
    the values under the pointer.
    """

    picture: Picture
    svg: str
    chart: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """The drawn pictures, those left out, and the files written."""

    drawn: tuple[Drawn, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    files: tuple[Path, ...] = ()


def plan(runs: Sequence[RunData]) -> list[Picture | LeftOut]:
    """Return the pictures of ``runs``, in the order they are shown; several runs are overlaid.

    Of a single run only those that apply to its mode and its images.
    """
    if len(runs) > 1:
        labeled = with_labels(runs)
        return [kind(labeled) for kind in _KINDS]
    return [kind(runs) for kind in _KINDS if _applies(kind, runs[0])]


def _applies(kind: _Kind, run: RunData) -> bool:
    if kind is benchmarks.latency and run.value("results", "inference"):
        return True
    if kind is benchmarks.accuracy_cost and not benchmarks.has_imagenet(run):
        return False
    return (run.text("name", "mode") or "convergence") in _KINDS[kind]


def draw(runs: Sequence[RunData], folder: Path, formats: Sequence[str] = FORMATS) -> Gallery:
    """Write ``NAME.png`` and ``NAME.svg`` of every picture that ``runs`` have data for.

    folder: created if missing. formats: any of `FORMATS`. The same runs give the same bytes.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    planned = plan(runs)
    drawn: list[Drawn] = []
    files: list[Path] = []
    for picture in planned:
        if isinstance(picture, LeftOut):
            continue
        contents, chart = _render(picture, formats)
        drawn.append(Drawn(picture, contents.get("svg", b"").decode("utf-8"), chart))
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for kind, content in contents.items():
                files.append(folder / f"{picture.name}.{kind}")
                files[-1].write_bytes(content)
    left_out = tuple(each for each in planned if isinstance(each, LeftOut))
    return Gallery(tuple(drawn), left_out, tuple(files))


def draw_run(folder: Path, report: RunReport) -> Gallery:
    """Draw the pictures of the run in ``folder`` into its ``plots/``.

    Raises:
        WorkspaceError: its records cannot be read, or the pictures cannot be written.
    """
    return draw([with_records(folder, report)], folder / "plots")


def draw_svg(picture: Picture) -> Drawn:
    """Draw a picture for a page, without a file. Its name must be unique within the page."""
    contents, chart = _render(picture, ["svg"])
    return Drawn(picture, contents["svg"].decode("utf-8"), chart)


def inline_svg(drawn: Drawn) -> str:
    """Return the ``<svg>`` element with alternative text and ids unique within a page.

    Its attribute ``data-chart`` has the points for the page's script, as JSON.

    Each color of `COLORS` becomes the CSS variable ``--p-NAME``, which a page may set for dark
    mode.
    """
    element = drawn.svg[drawn.svg.index("<svg") :]
    element = re.sub("<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    ids = r'(?<= id=")(?=[^"])|(?<=href="#)|(?<=url\(#)'
    element = re.sub(ids, f"{drawn.picture.name}-", element)
    chart = escape(json.dumps(drawn.chart, separators=(",", ":")), quote=False)
    chart = chart.replace("'", "&#39;")
    element = f"<svg data-chart='{chart}'{element.removeprefix('<svg')}"
    for name, value in COLORS.items():
        element = re.sub(value, f"var(--p-{name}, {value})", element, flags=re.IGNORECASE)
    alt = escape(drawn.picture.alt)
    return f'<svg role="img" aria-label="{alt}" tabindex="0"{element.removeprefix("<svg")}'


def _render(picture: Picture, formats: Sequence[str]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the picture's files, format -> content, and `Drawn.chart`."""
    import matplotlib
    from matplotlib.figure import Figure

    # One salt per picture keeps ids unique when several SVGs share a page.
    style: Any = {**_STYLE, "svg.hashsalt": picture.name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Folder names may hold scripts that the font lacks; matplotlib draws boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        labels = [label for label, _ in picture.entries]
        labels += {band.label for panel in picture.panels for band in panel.bands}
        columns = 2 if max(map(len, labels), default=0) <= _TWO_COLUMN_CHARS else 1
        height_in = max(
            _MIN_HEIGHT_IN,
            _FIRST_PANEL_IN
            + _NEXT_PANEL_IN * (len(picture.panels) - 1)
            + _TALL_IN * picture.tall
            + _LEGEND_LINE_IN * math.ceil(len(labels) / columns),
        )
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=150, layout="constrained")
        _draw_picture(figure, picture, columns)
        files = {}
        for kind in formats:
            content = io.BytesIO()
            # Without a date, the same run gives the same bytes.
            metadata: Any = {"Date": None, "Title": picture.title} if kind == "svg" else None
            figure.savefig(content, format=kind, metadata=metadata)
            files[kind] = content.getvalue()
        return files, _chart(figure, picture)


def _chart(figure: Figure, picture: Picture) -> dict[str, Any]:
    """Return the axes' places in the SVG, in its units, their limits, and the points."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    panels = []
    for axes, panel in zip(figure.axes, picture.panels, strict=True):
        at = axes.get_position()
        series = [
            _points(each.label, each.look, each.x, each.y, each.names or each.details)
            for each in panel.series
            if each.label
        ]
        for bars in panel.bars:
            middles = [(low + high) / 2 for low, high in pairwise(bars.edges)]
            names = [f"{low:,.5g} to {high:,.5g}" for low, high in pairwise(bars.edges)]
            series.append(_points(bars.label, bars.look, middles, bars.heights, names))
        marks = [(line.label, line.x, line.x) for line in panel.lines]
        marks += [(spans.label, *ends) for spans in panel.spans for ends in spans.ranges]
        panels.append(
            {
                "label": panel.y_label,
                "box": _rounded(
                    (at.x0 * width, (1 - at.y1) * height, at.width * width, at.height * height)
                ),
                "x": axes.get_xlim(),
                "y": axes.get_ylim(),
                "log": panel.scale == "log",
                "series": series,
                "marks": [(label, *_rounded(ends)) for label, *ends in marks],
            }
        )
    # Points of a curve are found by their x alone, single points by their distance.
    by_x = all(p.scale == "linear" and not any(s.areas for s in p.series) for p in picture.panels)
    return {
        "x": picture.x_label,
        "steps": picture.steps_per_epoch,
        "byX": by_x,
        "panels": panels,
    }


def _points(
    label: str, look: Look, x: Sequence[float], y: Sequence[float], names: Sequence[str]
) -> dict[str, Any]:
    # Eight digits: the page computes the step from x, the epochs done.
    points = {"label": label, "color": look.color, "x": _rounded(x, 8), "y": _rounded(y)}
    return points | ({"names": names} if any(names) else {})


def _rounded(values: Sequence[float], digits: int = 6) -> list[float | None]:
    """Return the values to ``digits`` digits, and None for a gap."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def _draw_picture(figure: Figure, picture: Picture, columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    all_axes = figure.subplots(len(picture.panels), 1, sharex=True, squeeze=False)[:, 0]
    all_axes[0].set_title(picture.title)
    all_axes[-1].set_xlabel(picture.x_label)
    bands: dict[str, Patch] = {}
    filled: set[str] = set()
    for axes, panel in zip(all_axes, picture.panels, strict=True):
        for band in panel.bands:
            fill: Any = {"facecolor": BAND, "alpha": 0.3, "hatch": "//"}
            axes.axhspan(band.low, band.high, linewidth=0, **fill)
            axes.axhline((band.low + band.high) / 2, color=BAND, linewidth=1.0)
            bands[band.label] = Patch(label=band.label, **fill)
        for index, series in enumerate(panel.series):
            _draw_series(axes, series, index / len(panel.series))
        for bars in panel.bars:
            look = bars.look
            # Filled bars of several runs would hide each other.
            is_filled = len(panel.bars) == 1
            axes.stairs(
                bars.heights,
                bars.edges,
                fill=is_filled,
                facecolor=GROUND,
                edgecolor=look.color,
                linestyle=look.line,
                linewidth=look.width,
                hatch=look.hatch if is_filled else None,
            )
            filled |= {bars.label} if is_filled else set()
        for line in panel.lines:
            look = line.look
            axes.axvline(line.x, color=look.color, linestyle=look.line, linewidth=look.width)
        for spans in panel.spans:
            to_edge = axes.get_xaxis_transform()
            if spans.look.marker:
                x = [start for start, _ in spans.ranges]
                axes.plot(x, [0.03] * len(x), transform=to_edge, **_pen(spans.look))
                continue
            widths = [(start, end - start) for start, end in spans.ranges]
            fill = {"facecolor": spans.look.color, "alpha": 0.3, "linewidth": 0}
            axes.broken_barh(widths, (0, 1), transform=to_edge, **fill)
            filled.add(spans.label)
        axes.set_ylabel(panel.y_label)
        _set_scales(axes, panel)
        if panel.marks_clipped:
            _mark_clipped(axes, panel)
    figure.align_ylabels(all_axes)
    handles = [
        _patch(_shortened(label), look)
        if label in filled
        else Line2D([], [], label=_shortened(label), **_pen(look))
        for label, look in picture.entries
    ]
    if len(handles) + len(bands) > 1:
        figure.legend(handles=[*handles, *bands.values()], loc="outside lower left", ncols=columns)


def _patch(label: str, look: Look) -> Patch:
    from matplotlib.patches import Patch

    if look.hatch:
        return Patch(facecolor=GROUND, edgecolor=look.color, hatch=look.hatch, label=label)
    return Patch(facecolor=look.color, alpha=0.3, linewidth=0, label=label)


def _mark_clipped(axes: Axes, panel: Panel) -> None:
    """Mark points above the axis with a triangle at its upper edge."""
    top = axes.get_ylim()[1]
    for series in panel.series:
        x = [at for at, y in zip(series.x, series.y, strict=True) if y > top]
        edge = [top] * len(x)
        axes.plot(x, edge, "^", color=series.look.color, markersize=6, clip_on=False, zorder=4)


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
        # Markers on every point of a long curve would hide it.
        every = max(1, len(series.x) // _MAX_MARKERS)
        axes.plot(series.x, series.y, markevery=(int(shift * every), every), **pen)
        if series.errors:
            pairs = list(zip(series.y, series.errors, strict=True))
            low, high = [y - error for y, error in pairs], [y + error for y, error in pairs]
            axes.fill_between(series.x, low, high, color=look.color, alpha=0.2, linewidth=0)
        if look.line and not look.marker and (alone := _without_neighbors(series.y)):
            x, y = [series.x[i] for i in alone], [series.y[i] for i in alone]
            axes.plot(x, y, **pen | {"linestyle": "none", "marker": "o", "markersize": 3.5})
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


def _without_neighbors(y: Sequence[float]) -> list[int]:
    """Return the positions of points between gaps, which no line would show."""
    known = [False, *map(math.isfinite, y), False]
    return [i for i in range(len(y)) if known[i : i + 3] == [False, True, False]]


def _set_scales(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xscale=panel.scale, yscale=panel.scale)
    for axis in (axes.xaxis, axes.yaxis):
        if panel.scale == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter("{x:,.10g}")
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks)
        axes.set_xticks([], minor=True)
    if panel.x_from_zero:
        axes.set_xlim(0, 1.02 * axes.dataLim.xmax or 1.0)
    if panel.y_limits is not None:
        low, high = panel.y_limits
        axes.set_ylim(low, high or 1.08 * axes.dataLim.ymax or 1.0)
    if any(any(each.names) for each in panel.series):
        # Room for the names of the last points.
        left, right = axes.get_xlim()
        log = panel.scale == "log"
        axes.set_xlim(left, right * (right / left) ** 0.08 if log else right + 0.3 * (right - left))
