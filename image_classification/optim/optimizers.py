"""Optimizers by name, and their parameter groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from image_classification.config.schema import OptimConfig
from image_classification.core.errors import ConfigError
from image_classification.core.registry import Registry

# _NormBase covers BatchNorm, SyncBatchNorm and InstanceNorm of every dimension.
_NORM_TYPES: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


DecayRule = Callable[[str, nn.Module], bool]
"""Return whether a parameter has weight decay: its full dotted name, and the module that has it."""

DECAY_RULES: Registry[DecayRule] = Registry("weight-decay rule")


@DECAY_RULES.register("no_norm_bias")
def _no_norm_bias(name: str, module: nn.Module) -> bool:
    """All but normalization layers and biases (arXiv:1812.01187, "no bias decay")."""
    return not isinstance(module, _NORM_TYPES) and name.rpartition(".")[2] != "bias"


@DECAY_RULES.register("legacy_bn_name")
def _legacy_bn_name(name: str, module: nn.Module) -> bool:
    """All but names that contain ``bn``, as in NVIDIA DeepLearningExamples ConvNets.

    Norm layers with other names (``downsample.1``) and ``fc.bias`` therefore decay, as in the
    published runs.
    """
    return "bn" not in name


@DECAY_RULES.register("all")
def _all(name: str, module: nn.Module) -> bool:
    """All parameters (torchvision's reference recipes)."""
    return True


def param_groups(model: nn.Module, weight_decay: float, rule: str) -> list[dict[str, Any]]:
    """Return the optimizer groups of ``model``: parameters with decay, then those without.

    Both groups are always there, even if empty, so that the optimizer's state has the same shape
    with every rule. A parameter that modules share is in one group once.

    Raises:
        ConfigError: there is no such rule.
    """
    decays = DECAY_RULES.get(rule)
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        (decayed if decays(name, module) else rest).append(parameter)
    return [
        {"params": decayed, "weight_decay": float(weight_decay)},
        {"params": rest, "weight_decay": 0.0},
    ]


OptimizerFactory = Callable[[list[dict[str, Any]], OptimConfig, str], torch.optim.Optimizer]

OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimizer")


@OPTIMIZERS.register("sgd")
def _sgd(groups: list[dict[str, Any]], cfg: OptimConfig, device_kind: str) -> torch.optim.Optimizer:
    """SGD with momentum and L2 decay, fused into one kernel per group on cuda and cpu.

    Momentum buffers are created here as zeros, not at the first step: torch's fused SGD (2.10)
    allocates them uninitialized and leaves them so if the loss scaler discards the first step.
    Starting from zeros gives the same first update: momentum * 0 + gradient.
    """
    if cfg.nesterov and cfg.momentum == 0:
        raise ConfigError(
            "optim.nesterov is true but optim.momentum is 0; set a momentum above 0 or "
            "remove nesterov"
        )
    # Tested on these devices; torch refuses it on others.
    fused = device_kind in ("cuda", "cpu")
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
    """RMSprop with momentum; each operation runs over all tensors of a group (``foreach``).

    torch 2.10 has no fused RMSprop. Epsilon is added *outside* the square root, as in torch and
    in NVIDIA's PyTorch EfficientNet runs (with eps 0.01). TensorFlow's EfficientNet code adds it
    inside, so an epsilon from a TensorFlow recipe has another effect here.
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
    """Build the optimizer for ``groups``, those of `param_groups`.

    The parameters must be on their device and in their memory format. Each group's ``lr`` is a
    Python float, which the training step sets from the schedule.

    Raises:
        ConfigError: unknown name, or options the optimizer does not have.
    """
    return OPTIMIZERS.get(cfg.name)(groups, cfg, device_kind)
