"""The networks, by name.

Naming and describing models needs no torch; `build` imports it on first use.
`image_classification.models.weights` saves and loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from image_classification.models import resnet as _resnet  # registers the family
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

__all__ = ["ModelOptions", "ModelSpec", "Preprocessing", "build", "list_models", "spec"]


def list_models() -> list[str]:
    """Return every registered model name, in order of registration."""
    return list(MODELS)


def spec(name: str) -> ModelSpec:
    """Return what model ``name`` is, without building it.

    Raises:
        ConfigError: no such model; the message has the nearest name.
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
    """Return a freshly initialised model, on torch's default device, in training mode.

    It maps float images ``[N, 3, H, W]`` to logits ``[N, num_classes]``. Initial weights come
    from torch's global generator alone: ``torch.manual_seed`` reproduces them.

    Args:
        name: one of `list_models`.
        num_classes: width of the classifier.
        init: ``fan_in`` (the NVIDIA runs) or ``fan_out`` (arXiv:1512.03385 as torchvision has
            it): mode of the convolutions' kaiming-normal initialisation.
        zero_init_last_gamma: start every residual block as the identity (arXiv:1706.02677).
        se_reduction: ``paper`` squeezes to channels / 16 (arXiv:1709.01507); ``fixed16`` to 16
            units in every block, as NVIDIA's PyTorch models do.

    Raises:
        ConfigError: unknown name or option value, or an option this model does not have.
    """
    model_spec = spec(name)
    options = ModelOptions(num_classes, init, zero_init_last_gamma, se_reduction)
    check_options(model_spec, options)
    return FAMILIES.get(model_spec.family)(model_spec, options)
