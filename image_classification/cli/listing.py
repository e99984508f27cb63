"""``--list``: every name there is, and every runnable combination."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from image_classification.config.catalogue import Catalogue, ListedRun
from image_classification.config.schema import MODES


def listing(catalogue: Catalogue, what: str = "all") -> dict[str, Any]:
    """Return ``{list name: names}`` for one list, or for all of them; runs are mappings."""
    lists: dict[str, Any] = {
        "models": list(catalogue.models),
        "platforms": list(catalogue.platforms),
        "precisions": list(catalogue.precisions),
        "modes": list(MODES),
        "recipes": list(catalogue.recipes),
        "runs": [dataclasses.asdict(run) for run in catalogue.runs()],
    }
    return lists if what == "all" else {what: lists[what]}


def render_listing(catalogue: Catalogue, what: str = "all", as_json: bool = False) -> str:
    """Return the text of ``--list WHAT``, or its JSON."""
    content = listing(catalogue, what)
    if as_json:
        return json.dumps(content, indent=1)
    if what == "all":
        parts = [f"{name}: {' '.join(names)}" for name, names in content.items() if name != "runs"]
        return "\n".join([*parts, "", *_runs_table(catalogue.runs())])
    if what == "runs":
        return "\n".join(_runs_table(catalogue.runs()))
    return "\n".join(content[what])


def _runs_table(runs: Iterable[ListedRun]) -> list[str]:
    recipes: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        text = f"{run.recipe}*" if run.default else run.recipe
        recipes.setdefault((run.model, run.platform, run.precision), []).append(text)
    rows = [("model", "platform", "precision", "recipes (* default)")]
    rows += [(*names, " ".join(texts)) for names, texts in recipes.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
