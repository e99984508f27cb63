"""The network of the ResNet family.

Modules and parameters have torchvision's names (``layer1.0.conv1``, ``downsample.0``), so that
torchvision's weights need no renaming; SE adds ``se.squeeze`` and ``se.expand``.
"""

from __future__ import annotations

import torch
from torch import nn

from image_classification.models import ModelOptions, ResNetSpec
from image_classification.models.classifier import Classifier

STEM_CHANNELS = 64


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias (BN follows it) that keeps the size at stride 1."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )


class SqueezeExcitation(nn.Module):
    """Channel gate of arXiv:1709.01507: mean over space, two dense layers with bias, sigmoid.

    Maps ``[N, C, H, W]`` to a gate ``[N, C, 1, 1]`` in 0..1, which the caller multiplies by. The
    dense layers keep torch's default initialization, as in NVIDIA's models.
    """

    def __init__(self, channels: int, squeeze_units: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeeze_units)
        self.expand = nn.Linear(squeeze_units, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gate for features ``x``."""
        pooled = x.mean(dim=(2, 3))
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(pooled))))
        return gate[:, :, None, None]


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return the projection shortcut, or None if the shortcut is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        _conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv:1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in_channels, H, W]`` -> ``[N, channels, ceil(H / stride), ceil(W / stride)]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: torch.Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, an optional SE gate, and a shortcut.

    The gate multiplies the branch after its last BN, before the addition (arXiv:1709.01507,
    figure 3).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        spec: ResNetSpec,
        se_reduction: str,
    ) -> None:
        super().__init__()
        width = channels * spec.width_per_group // STEM_CHANNELS * spec.groups
        out_channels = channels * self.expansion
        first_stride, middle_stride = (stride, 1) if spec.stride_in == "1x1" else (1, stride)
        self.conv1 = _conv(in_channels, width, 1, stride=first_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride=middle_stride, groups=spec.groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        squeeze_units = 16 if se_reduction == "fixed16" else out_channels // 16
        self.se = SqueezeExcitation(out_channels, squeeze_units) if spec.has_se else None
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in_channels, H, W]`` -> ``[N, 4 * channels, ceil(H / stride), …]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.se is None:
            out += shortcut
        else:
            # Gate and addition in one pass over memory.
            out = torch.addcmul(shortcut, out, self.se(out))
        activated: torch.Tensor = self.relu(out)
        return activated


class ResNet(Classifier):
    """Stem, four stages, global average pooling, classifier.

    Maps float images ``[N, 3, H, W]`` of any size to logits ``[N, num_classes]``. BN has torch's
    defaults (eps 1e-5, momentum 0.1), as in every published run of the family.
    """

    def __init__(self, spec: ResNetSpec, options: ModelOptions) -> None:
        super().__init__(spec, options)
        self.conv1 = _conv(3, STEM_CHANNELS, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages = []
        in_channels = STEM_CHANNELS
        for stage, num_blocks in enumerate(spec.blocks):
            channels = STEM_CHANNELS * 2**stage
            blocks: list[BasicBlock | Bottleneck] = []
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                shape = (in_channels, channels, stride)
                if spec.block == "basic":
                    blocks.append(BasicBlock(*shape))
                else:
                    blocks.append(Bottleneck(*shape, spec, options.se_reduction))
                in_channels = channels * blocks[-1].expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = in_channels
        self.fc = nn.Linear(in_channels, options.num_classes)

        self._initialize(options)

    def _initialize(self, options: ModelOptions) -> None:
        """Initialize convolutions Kaiming-normal with gain for ReLU, and BN as the identity.

        Torch counts the fans of a weight ``[out, in / groups, k, k]`` as k*k*in/groups and
        k*k*out. Dense layers keep torch's default (uniform within 1/sqrt(fan_in)), as in
        torchvision and in NVIDIA's models, and so does BN (weight 1, bias 0).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight,
                    mode=options.init,  # type: ignore[arg-type]  # checked by `ModelSpec.check`
                    nonlinearity="relu",
                )
            elif options.zero_init_last_gamma and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif options.zero_init_last_gamma and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """See `Classifier.forward_features`; the sides are those of the images / 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features
