"""A resolved configuration as plain data, for ``--explain --json``, config.yml and reports."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from image_classification.config.keys import KEYS
from image_classification.config.schema import RunConfig


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return ``{section: {key: value}}`` for JSON, with the keys of ``--set``."""
    content: dict[str, dict[str, Any]] = {}
    for key in KEYS.values():
        value = getattr(getattr(config, key.section), key.field)
        content.setdefault(key.section, {})[key.short] = (
            list(value) if isinstance(value, tuple) else value
        )
    return content


def explanation(config: RunConfig) -> dict[str, Any]:
    """Return what ``--explain --json`` prints: name, config, provenance and warnings."""
    return {
        "name": dataclasses.asdict(config.names),
        "config": to_dict(config),
        "provenance": dict(config.provenance),
        "warnings": list(config.warnings),
    }


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML, each value with its origin as a comment.

    Its content is that of `to_dict` plus ``name``, ``sources`` and ``warnings``.
    """
    lines = ["# Resolved configuration; each value with where it came from."]
    lines.append(f"name: {json.dumps(dataclasses.asdict(config.names), ensure_ascii=False)}")
    for section, content in to_dict(config).items():
        lines.append(f"{section}:")
        for short, value in content.items():
            origin = config.provenance[f"{section}.{short}"].replace("\n", " ")
            lines.append(f"  {short}: {_scalar(value):<24}  # {origin}")
    for name, texts in (("sources", config.sources), ("warnings", config.warnings)):
        lines.append(f"{name}: {json.dumps(list(texts), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        # YAML 1.1 reads 5e-05, which has no dot, as text.
        text = re.sub(r"^(-?\d+)e", r"\1.0e", text)
    return text
