"""The models, by name.

Listing and describing models needs no torch; `build` imports it on first use.
`image_classification.models.weights` saves and loads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from image_classification.core.errors import ConfigError, unknown
from image_classification.core.registry import Registry

if TYPE_CHECKING:
    from image_classification.config.schema import DataConfig
    from image_classification.models.classifier import Classifier

INITS = ("fan_in", "fan_out")
SE_REDUCTIONS = ("paper", "fixed16")

_RESNEXT = "Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"
_SE = "Squeeze-and-Excitation Networks, arXiv:1709.01507"
_V1_5 = "v1.5: stride 2 in the bottleneck's 3x3 convolution"


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of validation images: resize, center crop, normalize.

    The fields are those of `DataConfig`; sizes are in pixels, mean and std per RGB channel of
    images in 0..1. exif_orientation: images are turned upright first. The defaults are those of
    the published ResNet runs.
    """

    image_size: int = 224
    resize: int = 256
    resize_mode: str = "short_side"
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    exif_orientation: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> Preprocessing:
        """Return the preprocessing of validation images in a run with ``data``."""
        return cls(**{field.name: getattr(data, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class ModelOptions:
    """Options of a model; see `build`."""

    num_classes: int = 1000
    init: str = "fan_in"
    zero_init_last_gamma: bool = False
    se_reduction: str = "paper"


@dataclass(frozen=True)
class ModelSpec:
    """One named architecture; families add fields.

    torchvision_name: the torchvision model with the same architecture and parameter names.
    has_se: has squeeze-and-excitation, and therefore the option ``se_reduction``.
    """

    name: str
    description: str
    _: KW_ONLY
    family: str
    paper: str
    torchvision_name: str | None = None
    has_se: bool = False
    preprocessing: Preprocessing = Preprocessing()

    def check(self, options: ModelOptions) -> None:
        """Check ``options`` without building the model.

        Raises:
            ConfigError: unknown value, or an option this model does not have.
        """
        if options.num_classes < 1:
            raise ConfigError(f"model.num_classes must be at least 1, not {options.num_classes}")
        if options.init not in INITS:
            raise ConfigError(unknown("model.init", options.init, INITS))
        if options.se_reduction not in SE_REDUCTIONS:
            raise ConfigError(unknown("model.se_reduction", options.se_reduction, SE_REDUCTIONS))
        if options.se_reduction != "paper" and not self.has_se:
            raise ConfigError(
                f"model.se_reduction {options.se_reduction!r} does not apply to {self.name}, which "
                "has no squeeze-and-excitation: leave it out, or choose an se-… model"
            )


@dataclass(frozen=True)
class ResNetSpec(ModelSpec):
    """One ResNet.

    blocks: number of residual blocks in each of the four stages.
    block: ``basic`` (two 3x3 convolutions; without groups and SE) or ``bottleneck`` (1x1, 3x3,
    1x1).
    groups, width_per_group: the 3x3 convolutions of stage s have
    ``groups * width_per_group * 2**s`` channels (bottleneck only).
    stride_in: the strided convolution of a bottleneck: ``3x3`` (v1.5), or the first ``1x1`` (v1,
    as in the paper).
    """

    blocks: tuple[int, int, int, int]
    _: KW_ONLY
    family: str = "resnet"
    paper: str = "Deep Residual Learning for Image Recognition, arXiv:1512.03385"
    block: Literal["basic", "bottleneck"] = "bottleneck"
    groups: int = 1
    width_per_group: int = 64
    stride_in: Literal["3x3", "1x1"] = "3x3"


def _resnext(
    depth: int, groups: int, blocks: tuple[int, int, int, int], torchvision_name: str | None = None
) -> ResNetSpec:
    return ResNetSpec(
        f"resnext{depth}-{groups}x4d",
        f"ResNeXt-{depth}, {groups} groups of 4 channels; {_V1_5}",
        blocks,
        paper=_RESNEXT,
        groups=groups,
        width_per_group=4,
        torchvision_name=torchvision_name,
    )


def _with_se(base: ResNetSpec) -> ResNetSpec:
    return replace(
        base,
        name=f"se-{base.name}",
        description=f"{base.description}; squeeze-and-excitation after each block's last BN",
        paper=_SE,
        torchvision_name=None,
        has_se=True,
    )


_RESNET50 = ResNetSpec("resnet50", f"ResNet-50 {_V1_5}", (3, 4, 6, 3), torchvision_name="resnet50")
_RESNEXT50 = _resnext(50, 32, (3, 4, 6, 3), "resnext50_32x4d")
_RESNEXT101 = _resnext(101, 32, (3, 4, 23, 3))

MODELS: Registry[ModelSpec] = Registry("model")
for _spec in (
    ResNetSpec("resnet18", "ResNet-18", (2, 2, 2, 2), block="basic", torchvision_name="resnet18"),
    ResNetSpec("resnet34", "ResNet-34", (3, 4, 6, 3), block="basic", torchvision_name="resnet34"),
    _RESNET50,
    ResNetSpec("resnet101", f"ResNet-101 {_V1_5}", (3, 4, 23, 3), torchvision_name="resnet101"),
    ResNetSpec("resnet152", f"ResNet-152 {_V1_5}", (3, 8, 36, 3), torchvision_name="resnet152"),
    ResNetSpec(
        "resnet50-v1",
        "ResNet-50 v1: stride 2 in the bottleneck's first 1x1 convolution",
        (3, 4, 6, 3),
        stride_in="1x1",
    ),
    _RESNEXT50,
    _RESNEXT101,
    _resnext(101, 64, (3, 4, 23, 3), "resnext101_64x4d"),
    _with_se(_RESNET50),
    _with_se(_RESNEXT50),
    _with_se(_RESNEXT101),
):
    MODELS.add(_spec.name, _spec)

# The network of each family, called with the spec and the options.
FAMILIES: Registry[Callable[[Any, ModelOptions], Classifier]] = Registry("model family")
FAMILIES.add("resnet", "image_classification.models.resnet:ResNet")


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
) -> Classifier:
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
    options = ModelOptions(num_classes, init, zero_init_last_gamma, se_reduction)
    model = spec(name)
    model.check(options)
    return FAMILIES.get(model.family)(model, options)


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: str | os.PathLike[str] | Literal[False] | None = None,
    init: str = "fan_in",
    zero_init_last_gamma: bool = False,
    se_reduction: str = "paper",
) -> Classifier:
    """Return a model in training mode, with the weights of a file if one is given.

    Args:
        name: one of `list_models`.
        num_classes: width of the classifier; None: that of the file, or 1000. If the file has
            another number of classes, all its weights but the classifier's are loaded, and the
            classifier is newly initialized, as for fine-tuning.
        pretrained: a safetensors file, of this program or with torchvision's parameter names. The
            model gets its preprocessing and, with the same classes, its class names.
        init: see `build`.
        zero_init_last_gamma: see `build`.
        se_reduction: see `build`.

    Raises:
        ConfigError: see `build`; or ``pretrained`` is True, as nothing is downloaded.
        CheckpointError: the file is missing or damaged, or of another model.
    """
    if pretrained and isinstance(pretrained, bool):
        raise ConfigError("pretrained=True: nothing is downloaded; name a safetensors file")
    model = build(
        name,
        1000 if num_classes is None else num_classes,
        init=init,
        zero_init_last_gamma=zero_init_last_gamma,
        se_reduction=se_reduction,
    )
    if pretrained is not None and pretrained is not False:
        from image_classification.models.weights import load_into_new

        load_into_new(model, pretrained, files_classes=num_classes is None)
    return model
