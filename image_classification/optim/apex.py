"""NVIDIA Apex's fused SGD, where it was asked for."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from image_classification.config.schema import OptimConfig
from image_classification.core.apex import find_apex, require_optimizers
from image_classification.core.errors import ConfigError


def apex_optimizer(
    groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str
) -> torch.optim.Optimizer:
    """Build Apex's form of ``cfg.name``; see `optimizers.build_optimizer`.

    The update is that of torch's SGD, and the state is its ``momentum_buffer`` with the same
    meaning, so either may continue the other's. Momentum buffers are made here, as zeros: Apex
    decides for a whole group, by its last parameter, whether this is the first step.

    Raises:
        ConfigError: not sgd, not on cuda, or Apex is not here or cannot be loaded.
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
            # zeros_like keeps the layout: the kernel walks all a parameter's tensors side by side.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
