"""Mixed precision by ``apex.amp`` at O1, as the published runs had it before torch's own.

O1 keeps the weights in float32 and replaces torch's functions, for the whole process, by ones that
cast their arguments. Left active it would also act on what is none of the network's arithmetic: a
float64 sum becomes float32, float64 + float32 raises. It is therefore active in `autocast` alone.

``apex.amp`` changes no more (its last commit is of April 2025), so its internals are used where
it has no public way: the handle's activity, cache and restoring of functions.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from image_classification.core.apex import find_apex, require_amp
from image_classification.core.errors import ConfigError
from image_classification.engine.amp import Note, grad_norm
from image_classification.engine.health import poison

_SCALER = "loss_scaler0"


def open_apex_amp(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_scale: float | str | None,
    device: torch.device,
) -> ApexAmp:
    """Prepare ``model`` and ``optimizer``, before the model is wrapped to average gradients.

    loss_scale: fixed, ``'dynamic'``, or None for none.

    Raises:
        ConfigError: Apex or its amp is not here, or cannot be loaded.
    """
    require_amp(find_apex())
    try:
        with warnings.catch_warnings():
            # It has announced its own removal since 2022, and its texts have old escapes.
            warnings.simplefilter("ignore")
            amp = importlib.import_module("apex.amp")
            return ApexAmp(amp, model, optimizer, loss_scale, device)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"precision.amp_backend apex: apex.amp cannot be loaded with torch {torch.__version__} "
            f"({error}); leave it out for torch's own"
        ) from error


class ApexAmp:
    """Apex's casts and loss scaling; see `image_classification.engine.amp.Amp`.

    Dynamic scaling reads the overflow on the host, so each step waits for the device. A fixed
    scale skips nothing: gradients that overflow end the run, as its weights would be lost.
    """

    def __init__(
        self,
        amp: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_scale: float | str | None,
        device: torch.device,
    ) -> None:
        self._amp = amp
        self._optimizer = optimizer
        self._device = device
        self._scales = loss_scale is not None
        self._dynamic = loss_scale == "dynamic"
        scale = 1.0 if loss_scale is None else loss_scale
        prepared, _ = amp.initialize(
            model, optimizer, opt_level="O1", loss_scale=scale, verbosity=0
        )
        assert prepared is model, "O1 gives back the model it was given"
        self._handle = amp._amp_state.handle
        self._handle._is_active = False
        self._scale_before = self._host_scale()

    def _host_scale(self) -> float:
        return float(self._amp.state_dict()[_SCALER]["loss_scale"])

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Cast in the functions called within; forget the cast weights afterwards."""
        self._handle._is_active = True
        try:
            yield
        finally:
            self._handle._is_active = False
            # Else weights changed in place, or first seen without gradients, would be used stale.
            self._handle._clear_cache()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add scaled gradients; after the last micro-batch they are unscaled and looked at."""
        self._scale_before = self._host_scale()
        with self._amp.scale_loss(loss, self._optimizer, delay_unscale=not last) as scaled:
            scaled.backward(poison(scaled))

    def update(self, note: Note) -> torch.Tensor | None:
        """See `Amp`. Apex itself leaves out the step of an overflow."""
        overflow = None
        scale = self._on_device(self._scale_before) if self._scales else None
        if self._dynamic:
            overflow = self._on_device(self._host_scale() < self._scale_before)
            note(scale=scale, overflow=overflow)
        else:
            note(grad_norm=grad_norm(self._optimizer), scale=scale)
        self._optimizer.step()
        # Apex turns the casts off for the step, and on after it.
        self._handle._is_active = False
        return None if overflow is None else ~overflow

    def _on_device(self, value: float | bool) -> torch.Tensor:
        return torch.full((), value, device=self._device)

    def scale(self) -> torch.Tensor | None:
        """See `Amp`."""
        return self._on_device(self._host_scale()) if self._scales else None

    def state_dict(self) -> dict[str, Any]:
        """See `Amp`."""
        return {name: dict(values) for name, values in self._amp.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Amp`."""
        self._amp.load_state_dict(dict(state))

    def close(self) -> None:
        """Give torch its own functions back."""
        self._handle._deactivate()
