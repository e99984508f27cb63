"""``--explain``: the resolved configuration, each value with where it came from.

``--list``: every name there is, and every runnable combination.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from image_classification.config.catalogue import Catalogue, ListedRun
from image_classification.config.explain import explanation
from image_classification.config.schema import MODES, RunConfig


def render_explanation(config: RunConfig, as_json: bool = False) -> str:
    """Return a plain-text table of key, value and origin, or the JSON of the contract."""
    told = explanation(config)
    if as_json:
        return json.dumps(told, indent=1)
    names = " ".join(f"--{name} {value}" for name, value in told["name"].items())
    rows = [
        (f"{section}.{key}", _text(value), told["provenance"][f"{section}.{key}"])
        for section, content in told["config"].items()
        for key, value in content.items()
    ]
    widths = [max(len(row[i]) for row in [*rows, _HEAD]) for i in range(2)]
    lines = [names, ""]
    section = ""
    for row in [_HEAD, *rows]:
        if row[0].partition(".")[0] != section:
            section = row[0].partition(".")[0]
            if row is not _HEAD:
                lines.append("")
        lines.append(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")
    if config.sources:
        lines += ["", "published runs this configuration rests on:"]
        lines += [f"  {source}" for source in config.sources]
    if config.warnings:
        lines += ["", "notes:"]
        lines += [f"  {warning}" for warning in config.warnings]
    return "\n".join(lines)


_HEAD = ("key", "value", "where from")


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{','.join(_text(v) for v in value)}]"
    return str(value)


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
