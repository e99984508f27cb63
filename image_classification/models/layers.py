"""Layers and initialisation that model families share."""

from __future__ import annotations

import torch
from torch import nn


def conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias (a BN follows), padded to keep the size at stride 1."""
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
    """Channel gate of arXiv:1709.01507: mean over space, two biased dense layers, sigmoid.

    ``[N, C, H, W]`` -> gate ``[N, C, 1, 1]`` in 0..1, for the caller to multiply by. The dense
    layers keep torch's default initialisation, as in NVIDIA's models.
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


def init_convs_and_norms(model: nn.Module, mode: str) -> None:
    """Draw convolutions from kaiming-normal with gain for ReLU; BN starts as the identity.

    mode is ``fan_in`` or ``fan_out`` as torch counts them for a weight
    ``[out, in / groups, k, k]``: k*k*in/groups and k*k*out. Dense layers are left as torch
    makes them (uniform within 1/sqrt(fan_in)), which is what both torchvision and NVIDIA's
    predecessor do.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _kaiming_normal(module.weight, mode)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _kaiming_normal(weight: torch.Tensor, mode: str) -> None:
    if mode == "fan_in":
        nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
    elif mode == "fan_out":
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    else:
        raise ValueError(f"mode must be fan_in or fan_out, not {mode!r}")
