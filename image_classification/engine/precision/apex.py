"""NVIDIA Apex: whether it is installed, its fused SGD, and mixed precision by ``apex.amp`` at O1.

O1 is what the published runs had before torch's own. It keeps the weights in float32 and replaces
torch's functions, for the whole process, by ones that cast their arguments. Outside the network
that would break other arithmetic: a float64 sum becomes float32, float64 + float32 raises. So the
casts are active within `ApexAmp.autocast` only.

``apex.amp`` no longer changes (its last commit is of April 2025), so its internals are used where
it has no public way: the handle's activity, cache and restoring of functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from image_classification.config.schema import OptimConfig, RunConfig
from image_classification.core.errors import ConfigError
from image_classification.engine.precision.torch_amp import (
    RecordStep,
    grad_norm,
    initial_gradient,
)

LAST_COMMIT_WITH_AMP = "e13873debc4699d39c6861074b9a3b2a02327f92"
"""NVIDIA removed ``apex.amp`` in the commit after this one, on 8 May 2025."""

_INSTALL = (
    "use an image whose base has Apex (NVIDIA's PyTorch images do), or build one with "
    "--build-arg APEX_COMMIT=COMMIT"
)
_INSTALL_AMP = (
    f"build the image with --build-arg APEX_COMMIT={LAST_COMMIT_WITH_AMP}, the last with apex.amp"
)


@dataclass(frozen=True)
class Apex:
    """The installed package ``apex``.

    version: of its distribution; None where it has none. is_nvidia: False for the other project
    of this name on PyPI. has_amp: it has ``apex.amp``. has_kernels: it has the CUDA extension
    ``amp_C``, which the fused optimizers need.
    """

    version: str | None
    is_nvidia: bool
    has_amp: bool
    has_kernels: bool

    def describe(self) -> str:
        """Return one line: the version and the parts this project can use."""
        name = self.version or "unknown version"
        if not self.is_nvidia:
            return f"{name}, another project's apex"
        parts = ["fused optimizers"] if self.has_kernels else ["no CUDA extensions"]
        if self.has_amp:
            parts.append("amp")
        return f"{name} ({', '.join(parts)})"


def find_apex() -> Apex | None:
    """Look for the package ``apex`` without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]

    def has(name: str) -> bool:
        return any((folder / name / "__init__.py").is_file() for folder in folders)

    try:
        found = version("apex")
    except PackageNotFoundError:
        found = None
    return Apex(
        version=found,
        is_nvidia=has("optimizers") and has("multi_tensor_apply"),
        has_amp=has("amp"),
        has_kernels=importlib.util.find_spec("amp_C") is not None,
    )


def require_apex(config: RunConfig) -> None:
    """Raise ConfigError where ``config`` asks for a part of Apex that is not installed."""
    if config.precision.amp_backend == "apex":
        require_amp(find_apex())
    if config.optim.implementation == "apex":
        require_optimizers(find_apex())


def require_optimizers(apex: Apex | None) -> None:
    """Raise ConfigError where ``apex`` has no fused optimizers; the message has the remedy."""
    _require_kernels(apex, "optim.implementation apex", "leave it out for torch's own", _INSTALL)


def require_amp(apex: Apex | None) -> None:
    """Raise ConfigError where ``apex`` has no ``apex.amp``; the message has the remedy."""
    setting, instead = "precision.amp_backend apex", "leave it out for torch's own"
    if apex is not None and apex.is_nvidia and not apex.has_amp:
        raise ConfigError(
            f"{setting}: the Apex here ({apex.describe()}) has no apex.amp, which NVIDIA removed "
            f"in May 2025; {instead}, or {_INSTALL_AMP}"
        )
    _require_kernels(apex, setting, instead, _INSTALL_AMP)


def _require_kernels(apex: Apex | None, setting: str, instead: str, install: str) -> None:
    if apex is None:
        raise ConfigError(f"{setting}: NVIDIA Apex is not installed; {instead}, or {install}")
    if not apex.is_nvidia:
        raise ConfigError(
            f"{setting}: the installed package apex ({apex.version or 'unknown version'}) is not "
            f"NVIDIA's; {instead}, or pip uninstall apex and {install}"
        )
    if not apex.has_kernels:
        raise ConfigError(
            f"{setting}: the Apex here was built without its CUDA extensions (amp_C); {instead}, "
            f"or {install}"
        )


def apex_optimizer(
    groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """Build Apex's implementation of ``cfg.name``; see `optim.optimizers.build_optimizer`.

    Update and state (``momentum_buffer``) are those of torch's SGD, so either can continue the
    other's checkpoint. Momentum buffers are created here, as zeros: Apex decides for a whole
    group, by its last parameter, whether this is the first step.

    Raises:
        ConfigError: not sgd, not on cuda, or Apex is not installed or cannot be loaded.
    """
    if cfg.name != "sgd":
        raise ConfigError(
            f"optim.implementation apex has no {cfg.name}; leave it out, or use --optimizer sgd"
        )
    if device_kind != "cuda":
        raise ConfigError(
            f"optim.implementation apex needs an NVIDIA GPU, not {device_kind}; leave it out"
        )
    require_optimizers(find_apex())
    try:
        fused_sgd = importlib.import_module("apex.optimizers").FusedSGD
        optimizer: torch.optim.Optimizer = fused_sgd(
            groups, lr=float(cfg.lr), momentum=cfg.momentum, nesterov=cfg.nesterov
        )
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"optim.implementation apex: Apex cannot be loaded ({error}); leave it out, or build "
            f"Apex for torch {torch.__version__}"
        ) from error
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # zeros_like keeps the memory layout, which the fused kernel needs to be equal.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


_SCALER = "loss_scaler0"


def open_apex_amp(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_scale: float | str | None,
    device: torch.device,
) -> ApexAmp:
    """Prepare ``model`` (not yet wrapped by DDP) and ``optimizer`` for ``apex.amp``.

    loss_scale: a fixed scale, ``'dynamic'``, or None for no scaling.

    Raises:
        ConfigError: Apex or its amp is not installed, or cannot be loaded.
    """
    require_amp(find_apex())
    try:
        with warnings.catch_warnings():
            # Deprecation warnings, and invalid escapes in its docstrings.
            warnings.simplefilter("ignore")
            amp = importlib.import_module("apex.amp")
            return ApexAmp(amp, model, optimizer, loss_scale, device)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"precision.amp_backend apex: apex.amp cannot be loaded with torch {torch.__version__} "
            f"({error}); leave it out for torch's own"
        ) from error


class ApexAmp:
    """Apex's casts and loss scaling; see `torch_amp.Amp`.

    Dynamic scaling reads the overflow on the host, so each step waits for the device. With a fixed
    scale no step is skipped: gradients that overflow end the run before they reach the weights.
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
        assert prepared is model, "O1 returns the model itself"
        self._handle = amp._amp_state.handle
        self._handle._is_active = False
        self._scale_before = self._host_scale()

    def _host_scale(self) -> float:
        return float(self._amp.state_dict()[_SCALER]["loss_scale"])

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Cast the arguments of torch functions called within; see `Amp`."""
        self._handle._is_active = True
        try:
            yield
        finally:
            self._handle._is_active = False
            # Cached casts would be stale once weights change, or were made without gradients.
            self._handle._clear_cache()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add scaled gradients; after the last micro-batch Apex unscales and checks them."""
        self._scale_before = self._host_scale()
        with self._amp.scale_loss(loss, self._optimizer, delay_unscale=not last) as scaled:
            scaled.backward(initial_gradient(scaled))

    def update(self, record: RecordStep) -> torch.Tensor | None:
        """See `Amp`. Apex itself skips the step after an overflow."""
        overflow = None
        scale = self._on_device(self._scale_before) if self._scales else None
        if self._dynamic:
            overflow = self._on_device(self._host_scale() < self._scale_before)
            record(scale=scale, overflow=overflow)
        else:
            record(grad_norm=grad_norm(self._optimizer), scale=scale)
        self._optimizer.step()
        # Apex turns the casts back on after the step.
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
        """Restore the torch functions that Apex replaced."""
        self._handle._deactivate()
