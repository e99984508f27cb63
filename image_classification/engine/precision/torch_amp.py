"""Mixed precision of a training step: the `Amp` protocol, and torch's implementation of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import get_total_norm

from image_classification.devices.accelerator import Accelerator

RecordStep = Callable[..., None]
"""Takes a step's 0-d tensors grad_norm, or scale and overflow, by keyword; see
`engine.finiteness.FinitenessMonitor.record`."""


class Amp(Protocol):
    """Mixed precision of one network and its optimizer; float32 runs have one too."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Run the network, and in training its loss, in the run's precision."""
        ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the scaled gradients of ``loss`` (0-d, a micro-batch's share of the step's loss).

        last: this is the step's last micro-batch. A non-finite loss gives non-finite gradients.
        """
        ...

    def update(self, record: RecordStep) -> torch.Tensor | None:
        """Record the gradients' state and take the optimizer's step unless they overflowed.

        Returns 0-d bool on the device, False where the step was skipped; None: never skipped.
        """
        ...

    def scale(self) -> torch.Tensor | None:
        """Return the loss scale, 0-d on the device; None without loss scaling."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def close(self) -> None:
        """Undo changes to torch itself."""
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
        scaled.backward(initial_gradient(scaled))  # type: ignore[no-untyped-call]

    def update(self, record: RecordStep) -> torch.Tensor | None:
        """See `Amp`."""
        scale = self.scale()
        if scale is None:
            record(grad_norm=grad_norm(self._optimizer))
            self._optimizer.step()
            return None
        scale_before = scale.clone()
        self.scaler.step(self._optimizer)
        self.scaler.update()
        overflow = self.scaler._scale < scale_before  # type: ignore[operator]
        record(scale=scale_before, overflow=overflow)
        return ~overflow

    def scale(self) -> torch.Tensor | None:
        """Return the loss scale; None when scaling is off.

        `GradScaler.get_scale` copies to the host and would make every step wait; the tensor has
        no public accessor.
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


def initial_gradient(loss: torch.Tensor) -> torch.Tensor:
    """Return the gradient to start backward with: 1, or NaN where ``loss`` (0-d) is not finite.

    A non-finite loss on one rank so reaches the averaged gradients of all ranks. The gradients of
    a finite loss are unchanged, bit for bit.
    """
    return loss.detach() * 0 + 1


def grad_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the 2-norm of all gradients, 0-d on the device.

    The norm is the fastest check of every element: on a CPU it takes an eighth of the maximum.
    """
    grads = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return get_total_norm(grads)
