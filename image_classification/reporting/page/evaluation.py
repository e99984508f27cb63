"""The page's section on an evaluation: confusion matrix, accuracy of each class, worst mistakes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from image_classification.core.units import number
from image_classification.reporting.evaluation import (
    FOLDER,
    ClassResult,
    EvaluationDetails,
    Mistake,
    read_details,
)
from image_classification.reporting.report import Results
from image_classification.reporting.table import Table, columns

MAX_IN_MATRIX = 50
"""Classes up to which the whole matrix is drawn."""

_MAX_BARS = 20
_MAX_COUNTS_SHOWN = 12  # classes up to which the cells have their counts as text
_MAX_CONFUSED = 10
_MAX_NAME = 18
_HISTOGRAM_BINS = 20


def evaluation_section(run_folder: Path, results: Results) -> Mapping[str, Any] | None:
    """Return the values of ``evaluation.html.j2``; None if the run's folder has no evaluation.

    Raises:
        WorkspaceError: its files are damaged.
    """
    details = read_details(run_folder)
    if details is None or not details.images:
        return None
    ranked = details.ranked
    many = len(ranked) > _MAX_BARS
    groups = [("Lowest top-1", ranked[: _MAX_BARS // 2]), ("Highest top-1", ranked[::-1])]
    groups[1] = (groups[1][0], groups[1][1][: _MAX_BARS // 2])
    of_matrix = len(details.classes) <= MAX_IN_MATRIX
    what = results.evaluated.text
    if not what:
        best = results.best.epoch
        what = "those of the best validation"
        what += f", after epoch {best:g}" if best is not None else ""
    return {
        "what": what,
        "images": details.images,
        "num_mistakes": details.num_mistakes,
        "matrix": confusion_matrix(details) if of_matrix else None,
        "histogram": _histogram(ranked) if many else None,
        "bars": groups if many else [("", ranked[::-1])],
        "confused": _confused_table(details),
        "mistakes": [_shown(run_folder, mistake) for mistake in details.mistakes],
    }


def confusion_matrix(details: EvaluationDetails) -> Markup:
    """Return the matrix as an ``<svg>``: rows are true classes, columns predicted ones.

    The strength of a cell's color is its share of the row's images. ``data-matrix`` has names and
    counts for the page's script.
    """
    count = len(details.classes)
    cell = 34 if count <= _MAX_COUNTS_SHOWN else 16
    font = 12 if count <= _MAX_COUNTS_SHOWN else 10
    names = [_cut(name) for name in details.classes]
    margin = 26 + round(0.62 * font * max(map(len, names)))
    side = margin + cell * count + 8
    parts = []
    rows = {each.label: each.images for each in details.per_class}
    for (true, predicted), images in sorted(details.counts.items()):
        x, y = margin + predicted * cell, margin + true * cell
        # The root makes few mistakes visible.
        share = (images / rows[true]) ** 0.5
        color = "right" if true == predicted else "wrong"
        parts.append(
            f'<rect class="{color}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
            f'fill-opacity="{max(0.06, share):.2f}"/>'
        )
        if count <= _MAX_COUNTS_SHOWN:
            dark = ' class="on-dark"' if share > 0.8 else ""
            parts.append(
                f'<text{dark} x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle">'
                f"{images:,}</text>"
            )
    for k, name in enumerate(names):
        middle = margin + (k + 0.5) * cell
        text = escape(name)
        parts.append(
            f'<text x="{margin - 6}" y="{middle + 4}" text-anchor="end">{text}</text>'
            f'<text transform="translate({middle + 4} {margin - 6}) rotate(-90)">{text}</text>'
        )
    grid = f'<rect class="grid" x="{margin - 1}" y="{margin - 1}" width="{cell * count + 1}" '
    grid += f'height="{cell * count + 1}"/>'
    axes = (
        f'<text class="axis" transform="translate(12 {margin + cell * count / 2}) rotate(-90)" '
        f'text-anchor="middle">true class</text>'
        f'<text class="axis" x="{margin + cell * count / 2}" y="12" text-anchor="middle">'
        "predicted class</text>"
    )
    counts = [[true, predicted, n] for (true, predicted), n in sorted(details.counts.items())]
    data = {"names": details.classes, "counts": counts, "margin": margin, "cell": cell}
    text = escape(json.dumps(data, separators=(",", ":")), quote=False).replace("'", "&#39;")
    alt = f"Confusion matrix of {count} classes, {details.num_mistakes} of {details.images} wrong"
    return Markup(
        f'<svg class="matrix" role="img" aria-label="{alt}" tabindex="0" data-matrix=\'{text}\' '
        f'viewBox="0 0 {side} {side}" font-size="{font}" style="max-width: {round(1.3 * side)}px">'
        f"{grid}{axes}{''.join(parts)}</svg>"
    )


def _histogram(ranked: Sequence[ClassResult]) -> Any:
    from image_classification.reporting.pictures.draw import draw_svg
    from image_classification.reporting.pictures.picture import BLUE, Bars, Look, Panel, Picture

    heights = [0.0] * _HISTOGRAM_BINS
    for each in ranked:
        heights[min(int((each.top1 or 0) / 100 * _HISTOGRAM_BINS), _HISTOGRAM_BINS - 1)] += 1
    edges = tuple(100 * k / _HISTOGRAM_BINS for k in range(_HISTOGRAM_BINS + 1))
    bars = Bars("classes", edges, tuple(heights), Look(BLUE, width=0.8, hatch="///"))
    panel = Panel("classes", bars=(bars,), y_limits=(0.0, None))
    return draw_svg(Picture("classes", "Accuracy of the classes", "top-1, percent", (panel,)))


def _confused_table(details: EvaluationDetails) -> Table:
    few = len(details.classes) <= 2  # the matrix shows both pairs
    rows = [
        (true.name, predicted.name, str(count), f"{number(100 * count / true.images, 1)} %")
        for true, predicted, count in ([] if few else details.confused[:_MAX_CONFUSED])
    ]
    heads = ("true class", "predicted", "images", "share")
    return Table(columns(*heads, numbers=(2, 3)), rows, notes=["share: of the true class's images"])


def _shown(run_folder: Path, mistake: Mistake) -> dict[str, Any]:
    """Return a mistake with its thumbnail as a data URI, or why there is none."""
    source, problem = None, mistake.problem
    # Only a plain name: the file may come from elsewhere.
    if mistake.thumbnail is not None and Path(mistake.thumbnail).name == mistake.thumbnail:
        try:
            content = (run_folder / FOLDER / mistake.thumbnail).read_bytes()
            source = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
        except OSError as error:
            problem = f"no thumbnail: {error.strerror}"
    return {
        "image": mistake.image,
        "true": mistake.true,
        "predicted": mistake.predicted,
        "probability": _percent(mistake.probability),
        "true_probability": _percent(mistake.true_probability),
        "source": source,
        "problem": problem,
    }


def _percent(probability: float | None) -> str:
    return "-" if probability is None else f"{number(100 * probability, 1)} %"


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
