"""How large a model is and how much arithmetic an image costs."""

from __future__ import annotations

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
