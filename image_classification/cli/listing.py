"""What ``launch --list`` and ``--explain`` print."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import yaml

from image_classification.config.catalogue import Catalogue, ListedRun
from image_classification.config.keys import explanation
from image_classification.config.resolve import OWN_DATA_RECIPE
from image_classification.config.schema import MODES, RunConfig

LISTS = ("models", "platforms", "precisions", "modes", "recipes", "runs")

_MODE_TEXTS: Mapping[str, str] = {
    "convergence": "train, validate after every epoch, save checkpoints",
    "benchmark_training": "measure training speed on the data set",
    "benchmark_training_short": "measure training speed, 100 steps, synthetic images",
    "benchmark_inference": "measure inference speed and latency by batch size",
    "benchmark_data": "measure the data loader alone",
    "evaluate": "measure the accuracy of given weights",
}
_PRECISION_TEXTS: Mapping[str, str] = {
    "FP32": "float32",
    "TF32": "TF32 matrix products and convolutions (NVIDIA GPUs from A100 on)",
    "AMP": "float16 with loss scaling; bfloat16 on a CPU",
    "BF16": "bfloat16",
}
# By the start of the ids of published runs.
_VENDORS: Mapping[str, str] = {
    "nvidia": "NVIDIA",
    "iluvatar": "Iluvatar",
    "biv100": "Iluvatar",
    "habana": "Habana",
    "tf": "Habana",
}


def render_explanation(config: RunConfig, as_json: bool = False) -> str:
    """Return a text table of key, value and origin, or the JSON of `explanation`."""
    content = explanation(config)
    if as_json:
        return json.dumps(content, indent=1)
    tables = [[("key", "value", "where from")]]
    for section, values in content["config"].items():
        names = {f"{section}.{key}": value for key, value in values.items()}
        tables.append([(n, _text(value), config.provenance[n]) for n, value in names.items()])
    widths = [max(len(row[i]) for table in tables for row in table) for i in range(2)]
    lines = [" ".join(f"--{name} {value}" for name, value in content["name"].items())]
    for table in tables:
        lines.append("")
        lines += [f"{key:<{widths[0]}}  {value:<{widths[1]}}  {at}" for key, value, at in table]
    for title, texts in (
        ("published runs that this configuration reproduces:", config.sources),
        ("notes:", config.warnings),
    ):
        if texts:
            lines += ["", title, *(f"  {text}" for text in texts)]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def listing(catalogue: Catalogue, what: str = "all") -> dict[str, Any]:
    """Return list name -> names, for one list or all; a run is a mapping."""
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
    """Return the text of ``--list WHAT``, or its JSON. The text of all lists fits a screen."""
    content = listing(catalogue, what)
    if as_json:
        return json.dumps(content, indent=1)
    if what == "runs":
        return "\n".join(_runs_table(catalogue.runs()))
    if what != "all":
        return "\n".join(_columns(_rows(catalogue, what)))
    lines = []
    for name in ("models", "platforms"):
        text = "  ".join(content[name])
        wrapped = textwrap.wrap(text, 76, break_on_hyphens=False, break_long_words=False)
        lines += [f"{name} (more: --list {name})", *(f"  {line}" for line in wrapped), ""]
    for name in ("precisions", "modes", "recipes"):
        lines += [name, *(f"  {line}" for line in _columns(_rows(catalogue, name))), ""]
    return "\n".join([*lines, f"{len(content['runs'])} runs combine them: --list runs"])


def _rows(catalogue: Catalogue, what: str) -> list[tuple[str, ...]]:
    """Return a list's names, each with what it is."""
    if what == "models":
        return _model_rows(catalogue)
    if what == "platforms":
        return _platform_rows(catalogue)
    if what == "precisions":
        return [(name, _PRECISION_TEXTS.get(name, "")) for name in catalogue.precisions]
    if what == "modes":
        return [(name, _MODE_TEXTS[name]) for name in MODES]
    rows: list[tuple[str, ...]] = []
    for name, layer in catalogue.recipes.items():
        epochs = layer["schedule.epochs"][0] if "schedule.epochs" in layer else None
        mixup = layer["mixing.mixup"][0] if "mixing.mixup" in layer else 0
        text = f"{epochs} epochs" if epochs else ""
        if name == OWN_DATA_RECIPE:
            text += ", for your own photographs"
        rows.append((name, f"{text}, mixup {mixup:g}" if mixup else text))
    return rows


def _platform_rows(catalogue: Catalogue) -> list[tuple[str, ...]]:
    vendors: dict[str, dict[str, None]] = {}
    for (_, platform, _), entry in catalogue.entries.items():
        for block in (entry.block, *entry.recipes.values()):
            for run in block.sources:
                vendor = _VENDORS.get(run.partition("-")[0], "others")
                vendors.setdefault(platform, {})[vendor] = None
    rows: list[tuple[str, ...]] = [("platform", "machine", "published by")]
    for name, about in ((name, block.about) for name, block in catalogue.platforms.items()):
        rows.append((name, about, ", ".join(vendors.get(name, ())) or "-"))
    return rows


def _model_rows(catalogue: Catalogue) -> list[tuple[str, ...]]:
    from image_classification.reporting.published.load import load_published

    pictures = resources.files("image_classification.reporting.pictures")
    costs = yaml.safe_load(pictures.joinpath("model_costs.yml").read_text(encoding="utf-8"))
    best: dict[str, float] = {}
    for row in load_published():
        if row.figure == "top1" and row.run.named:
            best[row.model] = max(row.value, best.get(row.model, 0.0))
    rows: list[tuple[str, ...]] = [("model", "parameters", "image size", "highest published")]
    for model in catalogue.models:
        count = costs[model]["num_parameters"] / 1e6 if model in costs else None
        sizes = [
            entry.block.settings["data.image_size"][0]
            for (name, _, _), entry in catalogue.entries.items()
            if name == model and "data.image_size" in entry.block.settings
        ]
        rows.append(
            (
                model,
                "-" if count is None else f"{count:.1f} M",
                f"{max(sizes)} px" if sizes else "-",
                f"{best[model]:.2f} % top-1" if model in best else "-",
            )
        )
    return rows


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return [line.rstrip() for line in lines]


def _runs_table(runs: Iterable[ListedRun]) -> list[str]:
    recipes: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        text = f"{run.recipe}*" if run.default else run.recipe
        recipes.setdefault((run.model, run.platform, run.precision), []).append(text)
    rows = [("model", "platform", "precision", "recipes (* default)")]
    rows += [(*names, " ".join(texts)) for names, texts in recipes.items()]
    return _columns(rows)
