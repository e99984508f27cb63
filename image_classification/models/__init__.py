"""The models, by name.

Listing and describing models needs no torch; `build` imports it on first use.
`image_classification.models.weights` saves and loads them.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from image_classification.models import resnet as _resnet
from image_classification.models.spec import (
    FAMILIES,
    MODELS,
    ModelOptions,
    ModelSpec,
    Preprocessing,
    check_options,
)

if TYPE_CHECKING:
    from torch import nn

_resnet.register()

__all__ = [
    "ModelOptions",
    "ModelSpec",
    "Preprocessing",
    "build",
    "create_model",
    "list_models",
    "spec",
]


def list_models(filter: str | None = None) -> list[str]:
    """Return the names of all models, in order of registration.

    filter: only names that match this shell-style pattern, such as ``se-*``.
    """
    return [name for name in MODELS if filter is None or fnmatchcase(name, filter)]


def spec(name: str) -> ModelSpec:
    """Return the description of model ``name`` without building it.

    Raises:
        ConfigError: there is no such model; the message suggests the nearest name.
    """
    return MODELS.get(name)


def build(
    name: str,
    num_classes: int = 1000,
    *,
    init: str = "fan_in",
    zero_init_last_gamma: bool = False,
    se_reduction: str = "paper",
) -> nn.Module:
    """Return a newly initialized model in training mode, on torch's default device.

    It maps float images ``[N, 3, H, W]`` to logits ``[N, num_classes]``. Initial weights depend
    only on torch's global generator, so ``torch.manual_seed`` reproduces them.

    Args:
        name: one of `list_models`.
        num_classes: width of the classifier.
        init: mode of the convolutions' Kaiming-normal initialization: ``fan_in`` as in NVIDIA's
            runs, or ``fan_out`` as in torchvision.
        zero_init_last_gamma: start every residual block as the identity (arXiv:1706.02677).
        se_reduction: width of the squeeze layers: ``paper`` for channels / 16
            (arXiv:1709.01507), or ``fixed16`` for 16 units as in NVIDIA's PyTorch models.

    Raises:
        ConfigError: unknown name or option value, or an option this model does not have.
    """
    model_spec = spec(name)
    options = ModelOptions(num_classes, init, zero_init_last_gamma, se_reduction)
    check_options(model_spec, options)
    return FAMILIES.get(model_spec.family)(model_spec, options)


create_model = build
