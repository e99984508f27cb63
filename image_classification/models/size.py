"""Size of a model, arithmetic per image, and bytes of its training state."""

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
    """Return the multiply-adds of the forward pass of one square image.

    Counts convolutions and dense layers, each as half of torch's floating-point operations. As in
    published tables, biases, BN, activations, pooling and the product with the SE gate do not
    count. Runs on torch's meta device, so nothing is computed.
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
    """Return the bytes of the tensors in a checkpoint, without allocating any.

    optimizer_values: values the optimizer keeps per parameter. has_average: the checkpoint has a
    moving average of weights and buffers.
    """
    with torch.device("meta"):
        model = build(name, num_classes, se_reduction=se_reduction)
    parameters: int = sum(p.numel() * p.element_size() for p in model.parameters())
    state: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return state * (2 if has_average else 1) + optimizer_values * parameters


def largest_state_bytes(requests: list[tuple[str, int, str, int, bool]]) -> tuple[str, int]:
    """Return the name and `state_bytes` of the largest of ``requests``, its arguments."""
    largest = max(requests, key=lambda request: state_bytes(*request))
    return largest[0], state_bytes(*largest)
