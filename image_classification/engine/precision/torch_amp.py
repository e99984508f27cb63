"""What arithmetic a step is taken in, and who scales its loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import get_total_norm

from image_classification.devices.accelerator import Accelerator
from image_classification.engine.finiteness import poison


class Note(Protocol):
    """Takes down a step's health; see `image_classification.engine.finiteness.Watch.note`."""

    def __call__(
        self,
        *,
        grad_norm: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        overflow: torch.Tensor | None = None,
    ) -> None:
        """Note what is known of the step; 0-d tensors on the device."""
        ...


class Amp(Protocol):
    """Mixed precision of one network and its optimizer; also where there is none (float32)."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Run the network, and in training its loss, in the run's precision."""
        ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of ``loss`` (0-d, a micro-batch's share), scaled.

        last: of the step's micro-batches. A non-finite loss makes non-finite gradients.
        """
        ...

    def update(self, note: Note) -> torch.Tensor | None:
        """Note the gradients' health and take the optimizer's step, unless they overflowed.

        Returns 0-d bool on the device, False where the step was left out; None: always taken.
        """
        ...

    def scale(self) -> torch.Tensor | None:
        """Return the loss scale, 0-d on the device; None when there is none."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        ...

    def close(self) -> None:
        """Leave torch as it was found."""
        ...


class TorchAmp:
    """torch's autocast and loss scaler. Nothing here waits for the device."""

    def __init__(
        self,
        accelerator: Accelerator,
        dtype: str,
        scaler: GradScaler,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.scaler = scaler
        self._accelerator = accelerator
        self._dtype = dtype
        self._optimizer = optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the accelerator's autocast; see `Amp`."""
        return self._accelerator.autocast(self._dtype)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """See `Amp`."""
        scaled = self.scaler.scale(loss)
        scaled.backward(poison(scaled))  # type: ignore[no-untyped-call]

    def update(self, note: Note) -> torch.Tensor | None:
        """See `Amp`."""
        scale = self.scale()
        if scale is None:
            note(grad_norm=grad_norm(self._optimizer))
            self._optimizer.step()
            return None
        scale_before = scale.clone()
        self.scaler.step(self._optimizer)
        self.scaler.update()
        scale_after = self.scale()
        assert scale_after is not None
        overflow = scale_after < scale_before
        note(scale=scale_before, overflow=overflow)
        return ~overflow

    def scale(self) -> torch.Tensor | None:
        """Return the loss scale; None when scaling is off.

        `GradScaler.get_scale` copies to the host and so would make every step wait; the tensor
        itself has no public accessor.
        """
        return self.scaler._scale if self.scaler.is_enabled() else None

    def state_dict(self) -> dict[str, Any]:
        """See `Amp`."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Amp`."""
        self.scaler.load_state_dict(dict(state))

    def close(self) -> None:
        """Nothing to undo."""


def grad_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the 2-norm of all gradients, 0-d on the device.

    It is the fastest look at every element: an eighth of the maximum's time on a CPU.
    """
    grads = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return get_total_norm(grads)
