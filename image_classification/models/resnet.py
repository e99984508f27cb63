"""The members of the ResNet family: plain values, one entry a model.

`image_classification.models.resnet_network` turns an entry into a network.
"""

from __future__ import annotations

from dataclasses import dataclass

from image_classification.models.spec import FAMILIES, MODELS, ModelSpec

_RESNET = "Deep Residual Learning for Image Recognition, arXiv:1512.03385"
_RESNEXT = "Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"
_SE = "Squeeze-and-Excitation Networks, arXiv:1709.01507"
_V1_5 = "v1.5: stride 2 in the bottleneck's 3x3 convolution"


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(ModelSpec):
    """One ResNet.

    block: ``basic`` (two 3x3 convolutions) or ``bottleneck`` (1x1, 3x3, 1x1).
    blocks: residual blocks of the four stages. groups, width_per_group: the 3x3 convolutions of
    stage s have ``groups * width_per_group * 2**s`` channels (bottleneck only).
    stride_in: which convolution of a bottleneck has the stride: ``3x3`` (v1.5) or ``1x1``, the
    first (v1, as in the paper).
    """

    family: str = "resnet"
    block: str = "bottleneck"
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    stride_in: str = "3x3"

    def __post_init__(self) -> None:
        assert self.block in ("basic", "bottleneck"), self.block
        assert self.stride_in in ("1x1", "3x3"), self.stride_in
        if self.block == "basic":
            assert self.groups == 1 and self.width_per_group == 64, self.name
            assert not self.has_se, self.name


def _plain(
    depth: int, block: str, blocks: tuple[int, int, int, int], description: str
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
    """Register the family; called once by `image_classification.models`."""
    FAMILIES.add("resnet", "image_classification.models.resnet_network:build_resnet")
    for spec in SPECS:
        MODELS.add(spec.name, spec)
