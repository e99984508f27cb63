"""What a model is, in plain values: no torch here, so that listing names stays instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """How validation images reach the network: resize, centre crop, normalise.

    mean and std apply per RGB channel to images in 0..1. The defaults are those of the published
    ResNet runs. Names, meanings and choices are `DataConfig`'s; sizes in pixels.
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
        """Return what a run with ``data`` does to its validation images."""
        return cls(
            image_size=data.image_size,
            resize=data.resize,
            resize_mode=data.resize_mode,
            interpolation=data.interpolation,
            antialias=data.antialias,
            mean=data.mean,
            std=data.std,
        )


@dataclass(frozen=True)
class ModelOptions:
    """What a caller may choose about a model whose architecture is fixed."""

    num_classes: int = 1000
    init: str = "fan_in"
    zero_init_last_gamma: bool = False
    se_reduction: str = "paper"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One named architecture; families add their own fields.

    torchvision_name: the torchvision model of the same architecture and parameter names.
    has_se: whether it has squeeze-and-excitation, so that ``se_reduction`` has a meaning.
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
    """Check ``options`` against ``spec`` without building anything.

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
