"""The pages of several runs: ``compare.html`` and ``history.html``, with their charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from image_classification.reporting.compare.groups import Group
from image_classification.reporting.compare.history import History, line_table
from image_classification.reporting.compare.identity import Identity
from image_classification.reporting.compare.regression import (
    SIGNIFICANT,
    Change,
    Comparison,
    FolderComparison,
    comparison_notes,
    comparison_warnings,
    environment_table,
)
from image_classification.reporting.figures import figure_of, label_of, value_text
from image_classification.reporting.page import render
from image_classification.reporting.pictures.comparisons import combined_pictures, history_picture
from image_classification.reporting.pictures.draw import Gallery, draw_svg
from image_classification.reporting.pictures.picture import LeftOut


def combined_gallery(groups: Sequence[Group]) -> Gallery:
    """Draw the pictures of ``combined.html``."""
    planned = combined_pictures(groups)
    drawn = tuple(draw_svg(each) for each in planned if not isinstance(each, LeftOut))
    return Gallery(drawn, tuple(each for each in planned if isinstance(each, LeftOut)))


def compare_page(found: Comparison | FolderComparison) -> str:
    """Return the page of ``report compare``: each figure's change, with its error and threshold."""
    if isinstance(found, Comparison):
        title, comparisons = "Comparison of two runs", [found]
        regressed, left_out = [label_of(change.figure) for change in found.regressed], []
    else:
        title, comparisons = f"{found.new} compared with {found.old}", [*found.comparisons]
        regressed, left_out = [*found.regressed], [*found.not_compared, *found.left_out]
    return render(
        "compare",
        title=title,
        regressed=regressed,
        left_out=left_out,
        standard_errors=f"{SIGNIFICANT:g}",
        comparisons=[_comparison(each) for each in comparisons],
    )


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "title": Identity.of(comparison.new).text,
        "notes": comparison_notes(comparison),
        "warnings": comparison_warnings(comparison),
        "rows": [
            {
                "figure": label_of(change.figure),
                "old": value_text(change.figure, change.old),
                "new": value_text(change.figure, change.new),
                "change": change.text,
                "error": change.error_text,
                "verdict": change.verdict,
                "chart": change_chart(change),
            }
            for change in comparison.changes
        ],
        "environment": environment_table(comparison),
    }


def change_chart(change: Change) -> Markup:
    """Return a change as a dot on an axis from worse to better, 3 thresholds to either side.

    The line through the dot is `SIGNIFICANT` standard errors long to either side.
    """
    if change.change is None:
        return Markup("")
    unit, shaded = change.threshold or abs(change.change) or 1.0, float(change.threshold > 0)
    sign = -1 if figure_of(change.figure).lower_is_better else 1
    error = SIGNIFICANT * (change.standard_error or 0.0) / unit
    value = sign * change.change / unit

    def x(thresholds: float) -> float:
        return round(100 + 32 * max(-3.0, min(3.0, thresholds)), 1)

    at = x(value)
    if abs(value) > 3:
        tip = at + (6 if value > 0 else -6)
        dot = f'<path d="M{tip} 11 L{at} 5 L{at} 17 Z"/>'
    else:
        dot = f'<circle cx="{at}" cy="11" r="4.5"/>'
    whisker = ""
    if error:
        whisker = f'<line x1="{x(value - error)}" x2="{x(value + error)}" y1="11" y2="11"/>'
    css = change.verdict.replace(" ", "-")
    return Markup(
        f'<svg class="change {css}" viewBox="0 0 200 22" role="img" aria-label="{change.text}">'
        f'<rect x="{x(-shaded)}" y="2" width="{x(shaded) - x(-shaded)}" height="18"/>'
        f'<line class="zero" x1="100" x2="100" y1="0" y2="22"/>{whisker}{dot}</svg>'
    )


def history_page(history: History) -> str:
    """Return the page of ``report history``: the figures of every line over its runs."""
    lines = []
    for number, line in enumerate(history.lines):
        picture = history_picture(line, f"history-{number}")
        flags = [
            f"{entry.run.label}, {flag.text(history.against)}"
            for entry in line.entries
            for flag in entry.flags
        ]
        drawn = None if picture is None else draw_svg(picture)
        lines.append((line.identity.text, drawn, line_table(line), flags))
    return render(
        "history",
        title="History of runs",
        regressed=history.regressed,
        lines=lines,
        left_out=history.left_out,
    )
