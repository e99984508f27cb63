"""An optimizer's state by parameter name, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from image_classification.core.errors import CheckpointError


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Flatten the optimizer's state by parameter name: tensors, and the numbers beside them."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optim.{name}.{key}"] = value
            elif value is not None:
                numbers[f"optim.{name}.{key}"] = value
    return tensors, numbers


def restore_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Undo `optimizer_tensors`, in the parameters' own device and memory layout.

    Raises:
        CheckpointError: the state is not this model's.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in [*tensors.items(), *numbers.items()]:
        if not full_name.startswith("optim."):
            continue
        name, _, key = full_name.removeprefix("optim.").rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state of an unknown {name!r}")
        parameter = parameters[name]
        # Counters (0-d) stay on the host, where torch's non-capturable optimizers want them.
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            # empty_like keeps channels_last strides: fused kernels want matching layouts.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = value
