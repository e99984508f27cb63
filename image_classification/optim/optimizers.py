"""Which parameters decay: two optimizer groups, by a named rule.

The optimizers, by name, each in the fastest form torch has for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from image_classification.config.schema import OptimConfig
from image_classification.core.errors import ConfigError
from image_classification.core.registry import Registry

# _NormBase covers BatchNorm, SyncBatchNorm and InstanceNorm of every dimension.
_NORM_TYPES: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Owner:
    """A parameter's full dotted name, its own last part, and the module that holds it."""

    name: str
    leaf: str
    module: nn.Module


DecayRule = Callable[[Owner], bool]
"""True when the parameter decays."""

DECAY_RULES: Registry[DecayRule] = Registry("weight-decay rule")


@DECAY_RULES.register("no_norm_bias")
def _no_norm_bias(owner: Owner) -> bool:
    """Neither normalisation layers nor biases decay (arXiv:1812.01187, 'no bias decay')."""
    return not isinstance(owner.module, _NORM_TYPES) and owner.leaf != "bias"


@DECAY_RULES.register("legacy_bn_name")
def _legacy_bn_name(owner: Owner) -> bool:
    """Everything decays but names that hold ``bn``, as in NVIDIA DeepLearningExamples ConvNets.

    A norm layer named otherwise (``downsample.1``) and ``fc.bias`` therefore decay; the published
    runs were made so.
    """
    return "bn" not in owner.name


@DECAY_RULES.register("all")
def _all(owner: Owner) -> bool:
    """Everything decays (torchvision's reference recipes)."""
    return True


@dataclass(frozen=True)
class DecaySplit:
    """Parameter names by group, in the model's order; for reports and tests."""

    decayed: tuple[str, ...]
    not_decayed: tuple[str, ...]


def _owned(model: nn.Module) -> list[tuple[Owner, nn.Parameter]]:
    modules = dict(model.named_modules())
    owned = []
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        owned.append((Owner(name, leaf, modules[path]), parameter))
    return owned


def decay_split(model: nn.Module, rule: str) -> DecaySplit:
    """Return which parameters of ``model`` decay under ``rule``.

    Raises:
        ConfigError: no such rule.
    """
    decays = DECAY_RULES.get(rule)
    owners = [owner for owner, _ in _owned(model)]
    return DecaySplit(
        tuple(o.name for o in owners if decays(o)), tuple(o.name for o in owners if not decays(o))
    )


def param_groups(model: nn.Module, weight_decay: float, rule: str) -> list[dict[str, Any]]:
    """Split ``model``'s parameters into the decayed and the undecayed optimizer group.

    Both groups are always there, the decayed one first (either may be empty), so that optimizer
    state has one shape whatever the rule. Every parameter is in exactly one group, once, even
    when modules share it. ``decay_split`` gives the same partition by name.

    Raises:
        ConfigError: no such rule.
    """
    decays = DECAY_RULES.get(rule)
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for owner, parameter in _owned(model):
        (decayed if decays(owner) else rest).append(parameter)
    return [
        {"params": decayed, "weight_decay": float(weight_decay)},
        {"params": rest, "weight_decay": 0.0},
    ]


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
        ConfigError: unknown name or options the optimizer does not have.
    """
    return OPTIMIZERS.get(cfg.name)(groups, cfg, device_kind)
