"""What happens to a training image between its flip and its normalisation, in every backend.

The operations are drawn as plain values from the image's own random stream
(`image_classification.data.policies`) and applied here with torchvision's kernels for tensors, so
an image gets the same pixels from every backend, worker count and rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.data.policies import (
    Erasure,
    Op,
    draw_autoaugment,
    draw_colour_jitter,
    draw_erasing,
    draw_randaugment,
    draw_trivialaugment,
)
from image_classification.data.transforms import TrainTransform

Augmentation = tuple[Op | Erasure, ...]
"""What one image gets, in this order; empty for nothing."""


def augment(
    image: torch.Tensor, transform: TrainTransform, random: np.random.Generator
) -> torch.Tensor:
    """Draw from ``random`` and apply: ``[3, S, S]`` uint8 to the same, S = transform.image_size.

    ``random`` is the image's stream after its crop and flip were drawn. Returns ``image`` itself,
    with nothing drawn, where the transform has no further augmentation.
    """
    drawn = draw_augmentation(transform, random)
    return apply_augmentation(image, drawn, transform.augmentation_fill)


def draw_augmentation(transform: TrainTransform, random: np.random.Generator) -> Augmentation:
    """Draw what one image gets: policy, colour jitter, erasing. Pixels are not needed."""
    drawn: list[Op | Erasure] = []
    if transform.augmentation != "none":
        drawn += _draw_policy(transform, random)
    drawn += draw_colour_jitter(random, transform)
    if transform.erasing_prob > 0:
        drawn += draw_erasing(random, transform)
    return tuple(drawn)


def apply_augmentation(image: torch.Tensor, drawn: Augmentation, fill: int) -> torch.Tensor:
    """Apply ``drawn`` to ``image [3, S, S]`` uint8, in any layout and on any device.

    ``fill`` is the grey value of what moves in from outside. The result may share its memory with
    ``image`` where nothing was to be done, and never changes it.
    """
    for item in drawn:
        if isinstance(item, Erasure):
            image = _erased(image, item)
        elif item.name != "Identity":
            image = _KERNELS[item.name](image, item.magnitude, float(fill))
    return image


def _draw_policy(transform: TrainTransform, random: np.random.Generator) -> tuple[Op, ...]:
    side = transform.image_size
    if transform.augmentation == "autoaugment":
        return draw_autoaugment(random, side)
    if transform.augmentation == "randaugment":
        steps = transform.randaugment_ops, transform.randaugment_magnitude
        return draw_randaugment(random, side, *steps)
    if transform.augmentation == "trivialaugment":
        return draw_trivialaugment(random)
    raise ValueError(f"no augmentation policy {transform.augmentation!r}")


def _erased(image: torch.Tensor, erasure: Erasure) -> torch.Tensor:
    box, erased = erasure.box, image.clone()
    for channel, value in enumerate(erasure.colour):
        erased[channel, box.top : box.top + box.height, box.left : box.left + box.width] = value
    return erased


def _shear(image: torch.Tensor, x: float, y: float, fill: float) -> torch.Tensor:
    """Move each pixel by ``x`` times its row and ``y`` times its column, the corner fixed."""
    # The papers' magnitude is the tangent of the angle, about the top left corner.
    return torch.as_tensor(
        ops.affine(
            image,
            angle=0.0,
            translate=[0, 0],
            scale=1.0,
            shear=[math.degrees(math.atan(x)), math.degrees(math.atan(y))],
            interpolation=InterpolationMode.BILINEAR,
            fill=[fill],
            center=[0, 0],
        )
    )


def _translate(image: torch.Tensor, x_px: int, y_px: int, fill: float) -> torch.Tensor:
    """Move right by ``x_px`` and down by ``y_px``; whole pixels need no resampling."""
    moved = torch.full_like(image, int(fill))
    height, width = image.shape[-2:]
    rows, columns = height - abs(y_px), width - abs(x_px)
    if rows > 0 and columns > 0:
        to_y, to_x, from_y, from_x = max(y_px, 0), max(x_px, 0), max(-y_px, 0), max(-x_px, 0)
        source = image[:, from_y : from_y + rows, from_x : from_x + columns]
        moved[:, to_y : to_y + rows, to_x : to_x + columns] = source
    return moved


def _rotate(image: torch.Tensor, degrees: float, fill: float) -> torch.Tensor:
    bilinear = InterpolationMode.BILINEAR
    return torch.as_tensor(ops.rotate(image, degrees, interpolation=bilinear, fill=[fill]))


def _sharpen(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend with the image smoothed by ones around a five, over 13; the border stays.

    Sums of whole numbers, so the pixels are those of torchvision's convolution, ten times faster.
    """
    pixels = image.to(torch.float32)
    inner = pixels[:, 1:-1, 1:-1]
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth.add_(inner, alpha=4.0).div_(13.0).round_()
    inner.add_(smooth.sub_(inner), alpha=1.0 - factor)
    return pixels.clamp_(0, 255).to(torch.uint8)


_Kernel = Callable[[torch.Tensor, float, float], torch.Tensor]
_KERNELS: dict[str, _Kernel] = {
    "ShearX": lambda image, x, fill: _shear(image, x, 0.0, fill),
    "ShearY": lambda image, y, fill: _shear(image, 0.0, y, fill),
    "TranslateX": lambda image, x_px, fill: _translate(image, int(x_px), 0, fill),
    "TranslateY": lambda image, y_px, fill: _translate(image, 0, int(y_px), fill),
    "Rotate": _rotate,
    "Brightness": lambda image, factor, _: ops.adjust_brightness(image, factor),
    "Color": lambda image, factor, _: ops.adjust_saturation(image, factor),
    "Contrast": lambda image, factor, _: ops.adjust_contrast(image, factor),
    "Sharpness": lambda image, factor, _: _sharpen(image, factor),
    "Hue": lambda image, turn, _: ops.adjust_hue(image, turn),
    "Posterize": lambda image, bits, _: ops.posterize(image, int(bits)),
    "Solarize": lambda image, least, _: ops.solarize(image, least),
    "AutoContrast": lambda image, *_: ops.autocontrast(image),
    "Equalize": lambda image, *_: ops.equalize(image),
    "Invert": lambda image, *_: ops.invert(image),
}
