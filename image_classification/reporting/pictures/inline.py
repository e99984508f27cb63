"""Pictures inside a page: SVG elements with alternative text, in the page's own colours."""

from __future__ import annotations

import re
from html import escape

from image_classification.reporting.pictures.draw import Drawn, Gallery
from image_classification.reporting.pictures.style import COLORS

_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_ID = re.compile(r'(?<= id=")(?=[^"])')
_REFERENCE = re.compile(r'(?<=href="#)|(?<=url\(#)')
_COLOR = re.compile("|".join(COLORS.values()), re.IGNORECASE)
_VARIABLES = {value: f"var(--p-{name}, {value})" for name, value in COLORS.items()}


def gallery_html(gallery: Gallery) -> str:
    """Return the pictures as figures, then a line for each that is left out and why."""
    parts = []
    if gallery.drawn:
        figures = "\n".join(_figure(drawn) for drawn in gallery.drawn)
        parts.append(f'<div class="pictures">{figures}</div>')
    if gallery.left_out:
        lines = "".join(
            f"<li><b>{escape(entry.title)}</b>: {escape(entry.why)}.</li>"
            for entry in gallery.left_out
        )
        parts.append(f'<p class="soft">Not drawn:</p>\n<ul class="soft">{lines}</ul>')
    return "\n".join(parts)


def _figure(drawn: Drawn) -> str:
    notes = escape(" ".join(drawn.picture.notes))
    caption = f"<figcaption>{notes}</figcaption>" if notes else ""
    return f"<figure>{inline(drawn)}{caption}</figure>"


def inline(drawn: Drawn) -> str:
    """Return the ``<svg>`` element: described, its ids its own, its colours the page's.

    The page may set the variables ``--p-NAME`` of `style.COLORS`, as it does on a dark ground.
    """
    name = drawn.picture.name
    element = _METADATA.sub("", drawn.svg[drawn.svg.index("<svg") :])
    element = _ID.sub(f"{name}-", element)
    element = _REFERENCE.sub(f"{name}-", element)
    element = _COLOR.sub(lambda found: _VARIABLES[found[0].lower()], element)
    described = f'<svg role="img" aria-label="{escape(drawn.picture.alt)}"'
    return described + element.removeprefix("<svg")
