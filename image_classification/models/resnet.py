"""The models of the ResNet family as plain values.

`image_classification.models.resnet_network` builds the network of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_classification.models.spec import FAMILIES, MODELS, ModelSpec

_RESNET = "Deep Residual Learning for Image Recognition, arXiv:1512.03385"
_RESNEXT = "Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"
_SE = "Squeeze-and-Excitation Networks, arXiv:1709.01507"
_V1_5 = "v1.5: stride 2 in the bottleneck's 3x3 convolution"

Block = Literal["basic", "bottleneck"]


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(ModelSpec):
    """One ResNet.

    block: ``basic`` (two 3x3 convolutions) or ``bottleneck`` (1x1, 3x3, 1x1).
    blocks: number of residual blocks in each of the four stages.
    groups, width_per_group: the 3x3 convolutions of stage s have
    ``groups * width_per_group * 2**s`` channels (bottleneck only).
    stride_in: the strided convolution of a bottleneck: ``3x3`` (v1.5), or the first ``1x1`` (v1,
    as in the paper).
    """

    family: str = "resnet"
    block: Block = "bottleneck"
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    stride_in: Literal["3x3", "1x1"] = "3x3"

    def __post_init__(self) -> None:
        # Basic blocks have neither groups nor SE.
        assert self.block == "bottleneck" or (self.groups == 1 and not self.has_se), self.name


def _plain(
    depth: int, block: Block, blocks: tuple[int, int, int, int], description: str
) -> ResNetSpec:
    return ResNetSpec(
        name=f"resnet{depth}",
        description=description,
        paper=_RESNET,
        block=block,
        blocks=blocks,
        torchvision_name=f"resnet{depth}",
    )


def _resnext(
    depth: int, groups: int, blocks: tuple[int, int, int, int], torchvision_name: str | None
) -> ResNetSpec:
    return ResNetSpec(
        name=f"resnext{depth}-{groups}x4d",
        description=f"ResNeXt-{depth}, {groups} groups of 4 channels; {_V1_5}",
        paper=_RESNEXT,
        blocks=blocks,
        groups=groups,
        width_per_group=4,
        torchvision_name=torchvision_name,
    )


def _se(base: ResNetSpec) -> ResNetSpec:
    return ResNetSpec(
        name=f"se-{base.name}",
        description=f"{base.description}; squeeze-and-excitation after each block's last BN",
        paper=_SE,
        blocks=base.blocks,
        groups=base.groups,
        width_per_group=base.width_per_group,
        has_se=True,
    )


RESNET50 = _plain(50, "bottleneck", (3, 4, 6, 3), f"ResNet-50 {_V1_5}")
RESNEXT50_32X4D = _resnext(50, 32, (3, 4, 6, 3), "resnext50_32x4d")
RESNEXT101_32X4D = _resnext(101, 32, (3, 4, 23, 3), None)

SPECS = (
    _plain(18, "basic", (2, 2, 2, 2), "ResNet-18"),
    _plain(34, "basic", (3, 4, 6, 3), "ResNet-34"),
    RESNET50,
    _plain(101, "bottleneck", (3, 4, 23, 3), f"ResNet-101 {_V1_5}"),
    _plain(152, "bottleneck", (3, 8, 36, 3), f"ResNet-152 {_V1_5}"),
    ResNetSpec(
        name="resnet50-v1",
        description="ResNet-50 v1: stride 2 in the bottleneck's first 1x1 convolution",
        paper=_RESNET,
        blocks=RESNET50.blocks,
        stride_in="1x1",
    ),
    RESNEXT50_32X4D,
    RESNEXT101_32X4D,
    _resnext(101, 64, (3, 4, 23, 3), "resnext101_64x4d"),
    _se(RESNET50),
    _se(RESNEXT50_32X4D),
    _se(RESNEXT101_32X4D),
)


def register() -> None:
    """Register the family and its models; called once by `image_classification.models`."""
    FAMILIES.add("resnet", "image_classification.models.resnet_network:build_resnet")
    for spec in SPECS:
        MODELS.add(spec.name, spec)
