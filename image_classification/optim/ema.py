"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A second copy of the model that follows it: average = decay * average + (1 - decay) * model.

    The decay is constant. Parameters and floating-point buffers (BN's running mean and variance)
    are averaged alike, as the predecessor and timm's default do; integer buffers (BN's
    ``num_batches_tracked``) are copied. The average starts at the model's weights when this is
    made, so make it after weights are loaded.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"EMA decay {decay} is not in 0..1")
        self.decay = decay
        self._module = copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def module(self) -> nn.Module:
        """The averaged copy, in evaluation mode; the model itself is never touched."""
        return self._module

    @torch.no_grad()
    def update(self, model: nn.Module, applied: torch.Tensor | None = None) -> None:
        """Move the average towards ``model`` after an optimizer update.

        applied: 0-d bool on the model's device, False when the loss scaler discarded the update,
        in which case the average stays as it is; it is never read on the host. None: applied.
        """
        averages, values, copies, sources = self._pairs(model)
        if applied is None:
            torch._foreach_lerp_(averages, values, 1.0 - self.decay)
            for target, source in zip(copies, sources, strict=True):
                target.copy_(source)
            return
        assert applied.dim() == 0, applied.shape
        weight = applied.to(torch.float32) * (1.0 - self.decay)
        moves = torch._foreach_sub(values, averages)
        torch._foreach_mul_(moves, weight)
        torch._foreach_add_(averages, moves)
        for target, source in zip(copies, sources, strict=True):
            target.copy_(torch.where(applied, source, target))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged model's tensors under the model's own names (not copies)."""
        return self._module.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Replace the average.

        Raises:
            RuntimeError: names or shapes differ from the model's.
        """
        self._module.load_state_dict(state, strict=True)

    def _pairs(
        self, model: nn.Module
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        averages: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        copies: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        own, theirs = self._module.state_dict(), model.state_dict()
        assert own.keys() == theirs.keys(), "the model is not the one the average was made of"
        for name, average in own.items():
            if average.is_floating_point():
                averages.append(average)
                values.append(theirs[name])
            else:
                copies.append(average)
                sources.append(theirs[name])
        return averages, values, copies, sources
