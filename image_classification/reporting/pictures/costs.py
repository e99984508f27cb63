"""Accuracy against arithmetic: top-1 over multiply-adds, with parameters as the size of a dot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import median

import yaml

from image_classification.reporting.pictures.picture import LeftOut, Panel, Picture, Series, take
from image_classification.reporting.pictures.source import RunData
from image_classification.reporting.pictures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Look,
)
from image_classification.reporting.published.load import PublishedRow
from image_classification.reporting.published.verdict import load_published

COSTS_NAME = "model_costs.yml"
_NAME, _TITLE = "accuracy_cost", "Accuracy against multiply-adds"
_AREA_PER_MILLION = 2.6
_SHORT_EPOCHS = 100
_MEASURED_SHAPES = (
    (INK, "X"),
    (PURPLE, "P"),
    (ORANGE, "*"),
    (SKY, "D"),
    (INK, "v"),
    (PURPLE, "<"),
    (ORANGE, ">"),
)
_IMAGENET_CLASSES = 1000

# Shapes that leave a published ring below them visible.
_MEASURED = tuple(Look(color, "", marker) for color, marker in _MEASURED_SHAPES)
_LENGTHS = (
    (f"published, up to {_SHORT_EPOCHS} epochs", Look(BLUE, "", "o", filled=False)),
    (f"published, more than {_SHORT_EPOCHS} epochs", Look(VERMILION, "", "s", filled=False)),
    ("published, epochs not stated", Look(GREEN, "", "^", filled=False)),
)


@dataclass(frozen=True)
class Cost:
    """What one model costs with 1000 classes.

    multiply_adds: side of the square image in pixels -> of one image's forward pass.
    """

    num_parameters: int
    multiply_adds: dict[int, int]


@cache
def load_costs() -> dict[str, Cost]:
    """Read ``model_costs.yml``: every model of the registry."""
    package = resources.files(__package__)
    content = yaml.safe_load(package.joinpath(COSTS_NAME).read_text(encoding="utf-8"))
    return {name: Cost(**fields) for name, fields in content.items()}


def accuracy_cost(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw the runs' top-1 on ImageNet among the published ones of every model."""
    measured: list[Series] = []
    why: dict[str, None] = {}
    for run, look in zip(runs, take(_MEASURED, len(runs)), strict=True):
        found = _measured(run, run.label if len(runs) > 1 else "this run", look)
        if isinstance(found, Series):
            measured.append(found)
        else:
            why[f"{run.label}: {found}" if len(runs) > 1 else found] = None
    if not measured:
        return LeftOut(_NAME, _TITLE, "; ".join(why))
    panel = Panel("top-1, percent", (*_published(), *measured))
    notes = (
        "Dot size is the number of parameters; multiply-adds are of one image of 224 x 224 pixels "
        "for published figures, of the run's own size for measured ones.",
        "A published dot is the median of all publications, its line reaches from the lowest to "
        "the highest.",
        *(f"{reason}." for reason in why),
    )
    return Picture(_NAME, _TITLE, "multiply-adds an image, billions", (panel,), notes, tall=True)


def _measured(run: RunData, label: str, look: Look) -> Series | str:
    top1 = run.number("results", "validation", "top1")
    model = run.text("name", "model")
    if top1 is None:
        return "no top-1 was measured"
    if run.text("config", "data", "path") in ("demo", "synthetic") or (
        run.number("config", "model", "num_classes") != _IMAGENET_CLASSES
    ):
        return "its data set is not ImageNet, whose accuracy the others are"
    cost = load_costs().get(model)
    size_px = int(run.number("config", "data", "image_size") or 0)
    if cost is None or size_px not in cost.multiply_adds:
        return f"the multiply-adds of {model} at {size_px} pixels are not known"
    billions = cost.multiply_adds[size_px] / 1e9
    return Series(f"{label}: {model}", (billions,), (top1,), look, (_area(cost),))


def _published() -> list[Series]:
    costs = load_costs()
    found: dict[tuple[str, int], list[float]] = {}
    for model in costs:
        rows = [
            row
            for row in load_published()
            if row.figure == "top1" and row.model == model and row.elsewhere is None
        ]
        # Those of other recipes and frameworks only where there is nothing nearer.
        rows = [row for row in rows if row.run.named] or rows
        known = [row for row in rows if _length(row) < len(_LENGTHS) - 1]
        for row in known or rows:
            found.setdefault((model, _length(row)), []).append(row.value)
    series = []
    for length, (label, look) in enumerate(_LENGTHS):
        values = {model: found[model, length] for model in costs if (model, length) in found}
        x = tuple(costs[model].multiply_adds[224] / 1e9 for model in values)
        highest = {model: max(n for m, n in found if m == model) for model in values}
        series.append(
            Series(
                label,
                x,
                tuple(median(each) for each in values.values()),
                look,
                tuple(_area(costs[model]) for model in values),
                tuple(model if highest[model] == length else "" for model in values),
            )
        )
        for at, each in zip(x, values.values(), strict=True):
            if min(each) < max(each):
                thin = Look(INK, "-", width=0.8)
                series.append(Series("", (at, at), (min(each), max(each)), thin))
    return [each for each in series if each.x]


def _length(row: PublishedRow) -> int:
    if not isinstance(row.epochs, int):
        return len(_LENGTHS) - 1
    return int(row.epochs > _SHORT_EPOCHS)


def _area(cost: Cost) -> float:
    return _AREA_PER_MILLION * cost.num_parameters / 1e6
