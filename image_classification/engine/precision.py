"""Mixed precision of a training step by torch or by NVIDIA Apex, and Apex's fused SGD.

``apex.amp`` is used at O1, as in the published runs: it keeps the weights in float32 and replaces
torch's functions, for the whole process, by ones that cast their arguments. Outside the network
that would break other arithmetic (float64 + float32 raises), so the casts are active within
`ApexAmp.autocast` only. As ``apex.amp`` no longer changes (its last commit is of April 2025), its
internals are used where it has no public API.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import get_total_norm

from image_classification.config.schema import OptimConfig, RunConfig
from image_classification.core.errors import ConfigError
from image_classification.devices.accelerator import Accelerator

# Takes a step's 0-d tensors grad_norm, or scale and overflow, by keyword; see
# `engine.finiteness.FinitenessMonitor.record`.
RecordStep = Callable[..., None]

# NVIDIA removed ``apex.amp`` in the commit after this one, on 8 May 2025.
_LAST_COMMIT_WITH_AMP = "e13873debc4699d39c6861074b9a3b2a02327f92"


class TorchAmp:
    """Precision of one network and its optimizer by torch's autocast and loss scaler.

    Float32 runs have one too. Nothing here waits for the device.
    """

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
        """Run the network, and in training its loss, in the run's precision."""
        return self._accelerator.autocast(self._dtype)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the scaled gradients of ``loss`` (0-d, a micro-batch's share of the step's loss).

        last: this is the step's last micro-batch. A non-finite loss gives non-finite gradients.
        """
        scaled = self.scaler.scale(loss)
        scaled.backward(initial_gradient(scaled))  # type: ignore[no-untyped-call]

    def update(self, record: RecordStep) -> torch.Tensor | None:
        """Record the gradients' state and take the optimizer's step unless they overflowed.

        Returns 0-d bool on the device, False where the step was skipped; None: never skipped.
        """
        scale = self.scale()
        if scale is None:
            record(grad_norm=_grad_norm(self._optimizer))
            self._optimizer.step()
            return None
        scale_before = scale.clone()
        self.scaler.step(self._optimizer)
        self.scaler.update()
        overflow = self.scaler._scale < scale_before  # type: ignore[operator]
        record(scale=scale_before, overflow=overflow)
        return ~overflow

    def scale(self) -> torch.Tensor | None:
        """Return the loss scale, 0-d on the device; None without loss scaling."""
        # `GradScaler.get_scale` copies to the host and would make every step wait.
        return self.scaler._scale if self.scaler.is_enabled() else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scaler.load_state_dict(dict(state))

    def close(self) -> None:
        """Nothing to undo."""


def initial_gradient(loss: torch.Tensor) -> torch.Tensor:
    """Return the gradient to start backward with: 1, or NaN where ``loss`` (0-d) is not finite.

    This makes the averaged gradients of all ranks non-finite if one rank's loss is. The gradients
    of a finite loss are unchanged, bit for bit.
    """
    return loss.detach() * 0 + 1


def _grad_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the 2-norm of all gradients, 0-d; on a CPU, 8 times as fast as their maximum."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


@dataclass(frozen=True)
class Apex:
    """The installed package ``apex``.

    is_nvidia: False for the other project of this name on PyPI. has_amp: it has ``apex.amp``.
    has_kernels: it has the CUDA extension ``amp_C``, which amp and the fused optimizers need.
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
        kernels = "fused optimizers" if self.has_kernels else "no CUDA extensions"
        return f"{name} ({kernels}{', amp' if self.has_amp else ''})"


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
    """Raise ConfigError unless every part of Apex that ``config`` asks for is installed."""
    amp = config.precision.amp_backend == "apex"
    if not amp and config.optim.implementation != "apex":
        return
    apex = find_apex()
    setting = "precision.amp_backend apex" if amp else "optim.implementation apex"
    commit = _LAST_COMMIT_WITH_AMP if amp else "COMMIT"
    build = f"build the image with --build-arg APEX_COMMIT={commit}"
    if amp:
        build += ", the last with apex.amp"
    else:
        build = f"use an image whose base has Apex (NVIDIA's PyTorch images do), or {build}"
    if apex is None:
        problem = "NVIDIA Apex is not installed"
    elif not apex.is_nvidia:
        found = apex.version or "unknown version"
        problem = f"the installed package apex ({found}) is not NVIDIA's: pip uninstall apex"
    elif amp and not apex.has_amp:
        problem = f"the Apex here ({apex.describe()}) has no apex.amp, removed in May 2025"
    elif not apex.has_kernels:
        problem = "the Apex here was built without its CUDA extensions (amp_C)"
    else:
        return
    raise ConfigError(f"{setting}: {problem}; leave it out for torch's own, or {build}")


def apex_optimizer(
    groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """Build Apex's implementation of ``cfg.name``; see `optim.optimizers.build_optimizer`.

    Update and state (``momentum_buffer``) are those of torch's SGD, so either can continue the
    other's checkpoint. Momentum buffers are created here, as zeros: Apex decides for a whole
    group, by its last parameter, whether this is the first step.
    """
    if cfg.name != "sgd":
        raise ConfigError(
            f"optim.implementation apex has no {cfg.name}; leave it out, or use --optimizer sgd"
        )
    if device_kind != "cuda":
        raise ConfigError(
            f"optim.implementation apex needs an NVIDIA GPU, not {device_kind}; leave it out"
        )
    with _loading("optim.implementation apex: Apex"):
        fused_sgd = importlib.import_module("apex.optimizers").FusedSGD
        optimizer: torch.optim.Optimizer = fused_sgd(
            groups, lr=float(cfg.lr), momentum=cfg.momentum, nesterov=cfg.nesterov
        )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # zeros_like keeps the memory layout, which the fused kernel needs to be equal.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@contextmanager
def _loading(what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Deprecation warnings, and invalid escapes in its docstrings.
            warnings.simplefilter("ignore")
            yield
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"{what} cannot be loaded with torch {torch.__version__} ({error}); leave it out for "
            "torch's own, or build Apex for this torch"
        ) from error


class ApexAmp:
    """Apex's casts and loss scaling; methods as in `TorchAmp`.

    Dynamic scaling reads the overflow on the host, so each step waits for the device. With a fixed
    scale no step is skipped: gradients that overflow end the run before they reach the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_scale: float | str | None,
        device: torch.device,
    ) -> None:
        """Prepare ``model`` (not yet wrapped by DDP) and ``optimizer`` for ``apex.amp``.

        loss_scale: a fixed scale, ``'dynamic'``, or None for no scaling.
        """
        self._optimizer = optimizer
        self._device = device
        self._loss_scale = loss_scale
        with _loading("precision.amp_backend apex: apex.amp"):
            self._amp = importlib.import_module("apex.amp")
            prepared, _ = self._amp.initialize(
                model,
                optimizer,
                opt_level="O1",
                loss_scale=1.0 if loss_scale is None else loss_scale,
                verbosity=0,
            )
            assert prepared is model, "O1 returns the model itself"
            self._handle = self._amp._amp_state.handle
        self._handle._is_active = False
        self._scale_before = self._host_scale()

    def _host_scale(self) -> float:
        return float(self._amp.state_dict()["loss_scaler0"]["loss_scale"])

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Cast the arguments of torch functions called within."""
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
        """Take the optimizer's step; Apex itself skips it after an overflow."""
        overflow = None
        scale = None if self._loss_scale is None else self._on_device(self._scale_before)
        if self._loss_scale == "dynamic":
            overflow = self._on_device(self._host_scale() < self._scale_before)
            record(scale=scale, overflow=overflow)
        else:
            record(grad_norm=_grad_norm(self._optimizer), scale=scale)
        self._optimizer.step()
        # Apex turns the casts back on after the step.
        self._handle._is_active = False
        return None if overflow is None else ~overflow

    def _on_device(self, value: float | bool) -> torch.Tensor:
        return torch.full((), value, device=self._device)

    def scale(self) -> torch.Tensor | None:
        """Return the loss scale, 0-d on the device; None without loss scaling."""
        return None if self._loss_scale is None else self._on_device(self._host_scale())

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {name: dict(values) for name, values in self._amp.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._amp.load_state_dict(dict(state))

    def close(self) -> None:
        """Restore the torch functions that Apex replaced."""
        self._handle._deactivate()


Amp = TorchAmp | ApexAmp
