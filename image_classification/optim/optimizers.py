"""The optimizers, by name, each in the fastest form torch has for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from image_classification.config.schema import OptimConfig
from image_classification.core.errors import ConfigError
from image_classification.core.registry import Registry
from image_classification.optim.apex import apex_optimizer

OptimizerFactory = Callable[[list[dict[str, Any]], OptimConfig, str], torch.optim.Optimizer]

OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimizer")

# Devices whose single-kernel SGD this project has tests for; torch refuses fused=True elsewhere.
_FUSED_SGD_DEVICES = frozenset({"cuda", "cpu"})


@OPTIMIZERS.register("sgd")
def _sgd(groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str) -> torch.optim.Optimizer:
    """SGD with momentum and L2 decay, fused into one kernel a group on cuda and cpu.

    Momentum buffers are made here, as zeros, and not at the first step: torch's fused SGD
    allocates them uninitialised and then leaves them so when the loss scaler discards the first
    step, after which the garbage counts as momentum (torch 2.10). From zeros the first applied
    step is the same: momentum * 0 + gradient.
    """
    if cfg.nesterov and cfg.momentum == 0:
        raise ConfigError(
            "optim.nesterov is true but optim.momentum is 0; set a momentum above 0 or drop "
            "nesterov"
        )
    fused = device_kind in _FUSED_SGD_DEVICES
    optimizer = torch.optim.SGD(
        groups,
        lr=float(cfg.lr),
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        fused=fused,
        foreach=not fused,
    )
    if fused and cfg.momentum > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@OPTIMIZERS.register("rmsprop")
def _rmsprop(
    groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """RMSprop with momentum, horizontally fused (``foreach``) on every device.

    torch 2.10 has no single-kernel RMSprop; ``foreach`` runs each operation over all tensors of
    a group at once. Epsilon is added *outside* the square root, as torch and the PyTorch
    predecessor's EfficientNet runs have it (there with eps 0.01); TensorFlow's EfficientNet code
    adds it inside, so an epsilon from a TensorFlow recipe does not carry over unchanged.
    """
    if cfg.nesterov:
        raise ConfigError(
            "optim.nesterov is true but optim.name is rmsprop, which has no Nesterov form; set "
            "optim.nesterov=false or optim.name=sgd"
        )
    return torch.optim.RMSprop(
        groups,
        lr=float(cfg.lr),
        alpha=cfg.rmsprop_alpha,
        eps=cfg.rmsprop_eps,
        momentum=cfg.momentum,
        foreach=True,
    )


def build_optimizer(
    groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """Build the optimizer over ``groups`` (see `params.param_groups`).

    The parameters must already be on their device and in their memory format. Each group's
    ``lr`` is a Python float, to be set every step from the schedule.

    Raises:
        ConfigError: unknown name, options the optimizer does not have, or Apex's form of it where
            there is none.
    """
    if cfg.implementation == "apex":
        return apex_optimizer(groups, cfg, device_kind)
    return OPTIMIZERS.get(cfg.name)(groups, cfg, device_kind)
