"""Which parameters decay: two optimizer groups, by a named rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

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
