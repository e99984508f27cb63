"""``--explain``: the resolved configuration, each value with where it came from."""

from __future__ import annotations

import json
from typing import Any

from image_classification.config.schema import RunConfig
from image_classification.config.serialise import explanation


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
