"""Model descriptions as plain values; importing them does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from image_classification.core.errors import ConfigError, unknown
from image_classification.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from image_classification.config.schema import DataConfig

INITS = ("fan_in", "fan_out")
SE_REDUCTIONS = ("paper", "fixed16")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of validation images: resize, center crop, normalize.

    The fields are those of `DataConfig`; sizes are in pixels, mean and std per RGB channel of
    images in 0..1. The defaults are those of the published ResNet runs.
    """

    image_size: int = 224
    resize: int = 256
    resize_mode: str = "short_side"
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def of(cls, data: DataConfig) -> Preprocessing:
        """Return the preprocessing of validation images in a run with ``data``."""
        return cls(**{field.name: getattr(data, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class ModelOptions:
    """Options of a model; see `image_classification.models.build`."""

    num_classes: int = 1000
    init: str = "fan_in"
    zero_init_last_gamma: bool = False
    se_reduction: str = "paper"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One named architecture; families add fields.

    torchvision_name: the torchvision model with the same architecture and parameter names.
    has_se: has squeeze-and-excitation, and therefore the option ``se_reduction``.
    """

    name: str
    family: str
    description: str
    paper: str
    torchvision_name: str | None = None
    has_se: bool = False
    preprocessing: Preprocessing = Preprocessing()


ModelFactory = Callable[[ModelSpec, ModelOptions], "nn.Module"]

MODELS: Registry[ModelSpec] = Registry("model")
FAMILIES: Registry[ModelFactory] = Registry("model family")


def check_options(spec: ModelSpec, options: ModelOptions) -> None:
    """Check ``options`` against ``spec`` without building the model.

    Raises:
        ConfigError: unknown value, or an option this model does not have.
    """
    if options.num_classes < 1:
        raise ConfigError(f"model.num_classes must be at least 1, not {options.num_classes}")
    if options.init not in INITS:
        raise ConfigError(unknown("model.init", options.init, INITS))
    if options.se_reduction not in SE_REDUCTIONS:
        raise ConfigError(unknown("model.se_reduction", options.se_reduction, SE_REDUCTIONS))
    if options.se_reduction != "paper" and not spec.has_se:
        raise ConfigError(
            f"model.se_reduction {options.se_reduction!r} does not apply to {spec.name}, which has "
            "no squeeze-and-excitation: leave it out, or choose an se-… model"
        )
