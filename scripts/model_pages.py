#!/usr/bin/env python3
"""Rewrite the tables and command lists in ``docs/models``: ``python scripts/model_pages.py``.

They come from ``published.yml`` and ``configs.yml`` and replace what is between
``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``; the rest of a page is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from pages import comparison, figures, settings  # noqa: E402
from pages.published import Sources  # noqa: E402

PAGES = {
    "resnet50v1.5.md": "resnet50",
    "resnext101-32x4d.md": "resnext101-32x4d",
    "se-resnext101-32x4d.md": "se-resnext101-32x4d",
}
FOLDER = ROOT / "docs" / "models"

_BLOCK = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end: (?P=name) -->", re.DOTALL)


def model_blocks(model: str) -> dict[str, Callable[[], str]]:
    """Return ``{block: function that writes it}``; ``sources`` lists what earlier blocks used."""
    sources = Sources()
    makers: dict[str, Callable[[], str]] = {
        make.__name__.replace("_", "-"): partial(make, model, sources)
        for make in (
            figures.accuracy,
            figures.training,
            figures.criteria,
            figures.inference,
            figures.other_frameworks,
        )
    }
    for make in (
        settings.configurations,
        settings.commands,
        settings.differences,
        figures.not_measured,
    ):
        makers[make.__name__.replace("_", "-")] = partial(make, model)
    return makers | {"sources": sources.listed}


def filled(text: str, page: str) -> str:
    """Return the text of a page with every generated block rewritten.

    Raises:
        KeyError: a block has an unknown name.
    """
    makers = comparison.blocks(PAGES) if page == "README.md" else model_blocks(PAGES[page])

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        # Blocks run in the order of the page, so sources are numbered by first use.
        return f"<!-- generated: {name} -->\n{makers[name]()}\n<!-- end: {name} -->"

    return _BLOCK.sub(block, text)


def main() -> None:
    """Write every page that is out of date."""
    for page in (*PAGES, "README.md"):
        path = FOLDER / page
        old = path.read_text(encoding="utf-8")
        new = filled(old, page)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
