"""Exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A copy of the model, updated as average = decay * average + (1 - decay) * model.

    Parameters and floating-point buffers (BN's running mean and variance) are averaged, as in
    NVIDIA's code and by default in timm; integer buffers (BN's ``num_batches_tracked``) are
    copied. The average starts with the model's current weights: create it after loading them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"EMA decay {decay} is not in 0..1")
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, applied: torch.Tensor | None = None) -> None:
        """Move the average towards ``model`` after an optimizer update.

        applied: 0-d bool on the model's device, never read on the host. False, if the loss scaler
        discarded the update, leaves the average unchanged. None means applied.
        """
        average, current = self.module.state_dict(), model.state_dict()
        assert average.keys() == current.keys(), "the average is of another model"
        floats = [name for name, tensor in average.items() if tensor.is_floating_point()]
        averages, values = [average[name] for name in floats], [current[name] for name in floats]
        if applied is None:
            torch._foreach_lerp_(averages, values, 1.0 - self.decay)
        else:
            assert applied.dim() == 0, applied.shape
            changes = torch._foreach_sub(values, averages)
            torch._foreach_mul_(changes, applied.to(torch.float32) * (1.0 - self.decay))
            torch._foreach_add_(averages, changes)
        for name in average.keys() - set(floats):
            source, target = current[name], average[name]
            target.copy_(source if applied is None else torch.where(applied, source, target))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged tensors (not copies) under the model's names."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Replace the average.

        Raises:
            RuntimeError: names or shapes differ from the model's.
        """
        self.module.load_state_dict(state, strict=True)
