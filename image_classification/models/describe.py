"""A model's public shape as plain data, for the golden files."""

from __future__ import annotations

from typing import Any

import torch

from image_classification.models import build
from image_classification.models.count import count_multiply_adds, count_parameters

GOLDEN_IMAGE_SIZE_PX = 224


def describe(name: str) -> dict[str, Any]:
    """Return names with shapes, counts and arithmetic of ``name`` at its default options.

    Lists hold one ``"name [shape]"`` a tensor in the model's own order, which optimizers and
    saved files rely on.

    Raises:
        ConfigError: no such model.
    """
    with torch.device("meta"):
        model = build(name)
    return {
        "model": name,
        "num_parameters": count_parameters(model),
        f"multiply_adds_at_{GOLDEN_IMAGE_SIZE_PX}_px": count_multiply_adds(
            name, GOLDEN_IMAGE_SIZE_PX
        ),
        "parameters": [f"{key} {list(value.shape)}" for key, value in model.named_parameters()],
        "buffers": [f"{key} {list(value.shape)}" for key, value in model.named_buffers()],
    }
