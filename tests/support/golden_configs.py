"""The resolved configurations of all listed runs, in the form of tests/golden/configs/runs.json.

Origins are without line numbers: moving a line in configs.yml does not change a run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, TypeAlias

from image_classification.config.catalogue import load_catalogue
from image_classification.config.keys import explanation
from image_classification.config.resolve import resolve
from image_classification.config.schema import MODES, RunConfig

Flat: TypeAlias = dict[str, Any]


def without_line(origin: str) -> str:
    """Return ``origin`` without a line number: moving a line does not change a value."""
    return re.sub(r"^([^,]*?):\d+, ", r"\1, ", origin)


def flatten(config: RunConfig) -> Flat:
    """Return ``{"section.key": [value, origin]}`` plus ``warnings`` and ``sources``."""
    content, names = explanation(config), config.names

    def layer(key: str) -> str:
        origin = without_line(content["provenance"][key])
        origin = origin.replace(f"{names.model} {names.platform} {names.precision}", "the entry")
        return origin.replace(f", platform {names.platform}", ", the platform")

    flat: Flat = {
        f"{section}.{key}": [value, layer(f"{section}.{key}")]
        for section, values in content["config"].items()
        for key, value in values.items()
    }
    flat["warnings"] = content["warnings"]
    flat["sources"] = list(config.sources)
    return flat


def golden_configs() -> dict[str, Any]:
    """Return every listed run in convergence mode, and one run in every mode.

    ``common`` has the most frequent value of every key, ``runs`` and ``modes`` the differences from
    it. Origins have "the entry" and "the platform" instead of the run's names.
    """
    runs = {
        f"{r.model} {r.platform} {r.precision} {r.recipe}": flatten(
            resolve(r.model, r.precision, "convergence", r.platform, r.recipe)
        )
        for r in load_catalogue().runs()
    }
    modes = {
        f"{mode} of resnet50 DGXA100 AMP": flatten(resolve("resnet50", "AMP", mode, "DGXA100"))
        for mode in MODES
    }
    common = {key: _most_frequent([flat[key] for flat in runs.values()]) for key in _keys(runs)}
    return {
        "common": common,
        "runs": {name: _difference(flat, common) for name, flat in sorted(runs.items())},
        "modes": {name: _difference(flat, common) for name, flat in modes.items()},
    }


def dump_golden(golden: dict[str, Any]) -> str:
    """Return the golden configurations as JSON with one line per key."""
    parts = [f'"common": {_dump_flat(golden["common"])}']
    for group in ("runs", "modes"):
        runs = [f"{json.dumps(name)}: {_dump_flat(flat)}" for name, flat in golden[group].items()]
        body = ",\n".join(runs)
        parts.append(f'"{group}": {{\n{body}\n}}')
    body = ",\n".join(parts)
    return f"{{\n{body}\n}}\n"


def _dump_flat(flat: Flat) -> str:
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in flat.items()]
    body = ",\n".join(lines)
    return f"{{\n{body}\n}}"


def _keys(runs: dict[str, Flat]) -> list[str]:
    return list(next(iter(runs.values())))


def _most_frequent(values: list[Any]) -> Any:
    texts = Counter(map(repr, values))
    best = max(texts, key=lambda text: (texts[text], text))
    return next(v for v in values if repr(v) == best)


def _difference(flat: Flat, common: Flat) -> Flat:
    return {key: value for key, value in flat.items() if value != common[key]}
