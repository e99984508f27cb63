"""How large a model is and how much arithmetic an image costs.

How many bytes of weights and optimizer state a model's training keeps.

A model's public shape as plain data, for the golden files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from image_classification.models import build


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values; buffers such as BN statistics do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(
    name: str, image_size_px: int, *, num_classes: int = 1000, se_reduction: str = "paper"
) -> int:
    """Return the multiply-adds of one square image's forward pass.

    Counted: convolutions and dense layers, each as half of torch's floating-point operations.
    Not counted, as in published tables: biases, BN, activations, pooling, the SE gate's product.
    Nothing is computed: shapes alone pass through (torch's meta device).

    Raises:
        ConfigError: as `build`.
    """
    with torch.device("meta"), torch.no_grad():
        model = build(name, num_classes, se_reduction=se_reduction).eval()
        image = torch.empty(1, 3, image_size_px, image_size_px)
        with FlopCounterMode(display=False) as counter:
            model(image)
    return int(counter.get_total_flops()) // 2


def state_bytes(
    name: str, num_classes: int, se_reduction: str, optimizer_values: int, has_average: bool
) -> int:
    """Return the bytes of what a checkpoint's tensors hold.

    optimizer_values: values the optimizer keeps for each parameter. has_average: a moving average
    of weights and buffers is kept as well. Nothing is allocated (torch's meta device).

    Raises:
        ConfigError: as `build`.
    """
    with torch.device("meta"):
        model = build(name, num_classes, se_reduction=se_reduction)
    parameters: int = sum(p.numel() * p.element_size() for p in model.parameters())
    state: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return state * (2 if has_average else 1) + optimizer_values * parameters


def largest_state_bytes(requests: list[tuple[str, int, str, int, bool]]) -> tuple[str, int]:
    """Return name and `state_bytes` of the largest of ``requests`` (its arguments)."""
    sizes = {request: state_bytes(*request) for request in requests}
    largest = max(sizes, key=lambda request: sizes[request])
    return largest[0], sizes[largest]


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
