"""A run's curves: loss, accuracy, learning rate and throughput, as PNG and SVG.

Only what was measured is drawn, and a figure without a curve is not written. Colours are from the
Okabe-Ito palette, which colour-blind readers can tell apart; line styles and markers carry the
same distinction in black and white. matplotlib is imported on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classification.core.types import Record
from image_classification.reporting.files import unwritable
from image_classification.reporting.published import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_BAND, _GRID, _INK = "#7f7f7f", "#dddddd", "#222222"

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One line of a figure. x: epochs done (a fraction within one)."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    color: str
    style: str = "-"
    marker: str = ""


@dataclass(frozen=True)
class Plot:
    """One figure: its file's stem, its words, and its curves."""

    name: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    bands: tuple[Band, ...] = field(default=())
    from_zero: bool = False


def plan(records: Sequence[Record], bands: Sequence[Band] = ()) -> list[Plot]:
    """Choose the figures that ``records`` have curves for, in the order they are shown."""
    steps_per_epoch = _steps_per_epoch(records)
    if steps_per_epoch is None:
        return []

    def curve(
        kind: str, key: str, label: str, color: str, style: str = "-", marker: str = ""
    ) -> Curve:
        points = [
            (record.step / steps_per_epoch, float(record.values[key]))
            for record in records
            if record.kind == kind and record.values.get(key) is not None
        ]
        x, y = zip(*points, strict=True) if points else ((), ())
        return Curve(label, x, y, color, style, marker)

    plots = [
        Plot(
            "loss",
            "Loss",
            "cross-entropy",
            (
                curve("step", "loss", "training", _BLUE),
                curve("validation", "loss", "validation", _VERMILION, "--", "o"),
                curve("validation_ema", "loss", "validation, EMA", _GREEN, ":", "s"),
            ),
        ),
        Plot(
            "accuracy",
            "Validation accuracy",
            "percent",
            (
                curve("validation", "top1", "top-1", _BLUE, "-", "o"),
                curve("validation", "top5", "top-5", _VERMILION, "--", "^"),
                curve("validation_ema", "top1", "top-1, EMA", _GREEN, ":", "s"),
            ),
            tuple(band for band in bands if band.figure == "top1"),
        ),
        Plot(
            "learning_rate",
            "Learning rate",
            "",
            (curve("step", "lr", "learning rate", _BLUE),),
            from_zero=True,
        ),
        Plot(
            "throughput",
            "Training throughput",
            "images/s",
            (
                curve("epoch", "images_per_s", "data wait included", _BLUE, "-", "o"),
                curve("epoch", "compute_images_per_s", "data wait left out", _VERMILION, "--", "^"),
            ),
            tuple(band for band in bands if band.figure == "train_images_per_s"),
            from_zero=True,
        ),
    ]
    drawn = [_without_empty_curves(plot) for plot in plots]
    return [plot for plot in drawn if plot.curves]


def _steps_per_epoch(records: Sequence[Record]) -> int | None:
    for record in records:
        if record.values.get("steps_per_epoch"):
            return int(record.values["steps_per_epoch"])
    return None


def _without_empty_curves(plot: Plot) -> Plot:
    return Plot(
        plot.name,
        plot.title,
        plot.unit,
        tuple(curve for curve in plot.curves if curve.x),
        plot.bands,
        plot.from_zero,
    )


def draw(records: Sequence[Record], folder: Path, bands: Sequence[Band] = ()) -> list[Path]:
    """Write ``NAME.png`` and ``NAME.svg`` for every figure there is something to draw for.

    folder: made when missing. bands: published figures this run may be compared with.

    Returns the files written, SVG after PNG of each figure.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    plots = plan(records, bands)
    written: list[Path] = []
    try:
        if plots:
            folder.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            written += _save(plot, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    return written


def _save(plot: Plot, folder: Path) -> list[Path]:
    import matplotlib
    from matplotlib.figure import Figure

    # One salt a figure, so that ids stay unique where several SVGs share a page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": plot.name}):
        figure = Figure(figsize=(5.2, 3.4), dpi=150, layout="constrained")
        _fill(figure, plot)
        png, svg = folder / f"{plot.name}.png", folder / f"{plot.name}.svg"
        figure.savefig(png)
        # No date in the file: the same run draws the same bytes.
        figure.savefig(svg, metadata={"Date": None, "Title": plot.title})
    return [png, svg]


def _fill(figure: Figure, plot: Plot) -> None:
    axes = figure.subplots()
    for band in plot.bands:
        axes.axhspan(band.low, band.high, color=_BAND, alpha=0.25, linewidth=0, label=band.label)
        axes.axhline((band.low + band.high) / 2, color=_BAND, linewidth=1.0)
    for curve in plot.curves:
        # Markers on every point of a long curve would hide it.
        every = max(1, len(curve.x) // 25)
        # A single point has no line to see: it gets a marker in any case.
        marker = curve.marker or ("o" if len(curve.x) == 1 else "")
        axes.plot(
            curve.x,
            curve.y,
            color=curve.color,
            linestyle=curve.style,
            marker=marker,
            markevery=every,
            markersize=4.5,
            linewidth=1.6,
            label=curve.label,
        )
    axes.set_title(plot.title)
    axes.set_xlabel("epochs done")
    axes.set_ylabel(plot.unit)
    _set_limits(axes, plot)
    if len(plot.curves) + len(plot.bands) > 1:
        figure.legend(loc="outside lower left", ncols=2)


def _set_limits(axes: Axes, plot: Plot) -> None:
    axes.set_xlim(0, 1.02 * max(max(curve.x) for curve in plot.curves))
    if plot.from_zero:
        highest = max(max(curve.y) for curve in plot.curves)
        axes.set_ylim(0, 1.08 * max([highest, *(band.high for band in plot.bands)]) or 1.0)
