"""How many bytes of weights and optimizer state a model's training keeps."""

from __future__ import annotations

import torch

from image_classification.models import build


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
