"""Augmentation of a training image between its flip and its normalization, in every backend.

AutoAugment's ImageNet policy (arXiv:1805.09501, table 9), RandAugment (arXiv:1909.13719),
TrivialAugment's wide space (arXiv:2103.10158), color jitter and random erasing (arXiv:1708.04896),
with torchvision's magnitudes and sampling. Operations are drawn as plain values from the image's
own random generator, then applied with torchvision's tensor kernels: so an image gets the same
pixels from every backend, worker count and rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.config.schema import DataConfig
from image_classification.data.transforms import CropBox

T = TypeVar("T")

AUTOAUGMENT_BINS = 10
WIDE_BINS = 31
"""Magnitude bins of RandAugment and TrivialAugment."""

_ERASED_AREA = (0.02, 0.33)
_ERASED_RATIO = (0.3, 3.3)  # height / width
_ERASING_ATTEMPTS = 10


class Op(NamedTuple):
    """One operation with its magnitude.

    Magnitudes: ShearX, ShearY the tangent of the angle; TranslateX, TranslateY whole pixels;
    Rotate degrees; Brightness, Color, Contrast, Sharpness a factor (1: unchanged); Hue a fraction
    of the color circle; Posterize the bits to keep; Solarize the min value to invert; else 0.
    """

    name: str
    magnitude: float


class Erasure(NamedTuple):
    """A rectangle to fill with one color (red, green, blue, each 0 to 255)."""

    box: CropBox
    color: tuple[int, ...]


_FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")
_Ranges = dict[str, tuple[float, float, bool]]
"""Magnitude of an operation at the first and the last bin, and whether its sign is random."""


def _ranges(shear: float, translate: float, degrees: float, factor: float, bits: float) -> _Ranges:
    """Return the ranges of a policy; the arguments are the largest magnitudes."""
    signed = {"ShearX": shear, "ShearY": shear, "TranslateX": translate, "TranslateY": translate}
    signed |= {"Rotate": degrees, **dict.fromkeys(_FACTORS, factor)}
    ranges = {name: (0.0, high, True) for name, high in signed.items()}
    return ranges | {"Posterize": (8.0, bits, False), "Solarize": (255.0, 0.0, False)}


# Translation as a fraction of the image's side: in the paper 150 of 331 pixels.
_NARROW = _ranges(shear=0.3, translate=150 / 331, degrees=30.0, factor=0.9, bits=4.0)
# Translation in pixels, whatever the image's side.
_WIDE = _ranges(shear=0.99, translate=32.0, degrees=135.0, factor=0.99, bits=2.0)

_CHOICES = ("Identity", *_NARROW, "AutoContrast", "Equalize")
"""Operations of RandAugment and TrivialAugment, equally likely; in torchvision's order."""

_PolicyStep = tuple[str, float, int]
"""An operation, its probability, and its bin of `AUTOAUGMENT_BINS` (0 if it has no magnitude)."""

_IMAGENET_POLICY: tuple[tuple[_PolicyStep, _PolicyStep], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


def augment(image: torch.Tensor, data: DataConfig, random: np.random.Generator) -> torch.Tensor:
    """Draw an augmentation and apply it to ``image [3, S, S]`` uint8; S is data.image_size.

    ``random`` is the image's generator after its crop and flip were drawn. If every augmentation
    is off, nothing is drawn and the result is ``image`` itself.
    """
    return apply_augmentation(image, draw_augmentation(data, random), data.augmentation_fill)


def draw_augmentation(data: DataConfig, random: np.random.Generator) -> tuple[Op | Erasure, ...]:
    """Draw policy, color jitter and erasing for one image, to be applied in this order."""
    drawn: list[Op | Erasure] = []
    if data.augmentation == "autoaugment":
        drawn += draw_autoaugment(random, data.image_size)
    elif data.augmentation == "randaugment":
        settings = data.randaugment_ops, data.randaugment_magnitude
        drawn += draw_randaugment(random, data.image_size, *settings)
    elif data.augmentation == "trivialaugment":
        drawn.append(draw_trivialaugment(random))
    elif data.augmentation != "none":
        raise ValueError(f"no augmentation policy {data.augmentation!r}")
    drawn += draw_color_jitter(random, data)
    if data.random_erasing > 0:
        drawn += draw_erasing(random, data)
    return tuple(drawn)


def apply_augmentation(
    image: torch.Tensor, drawn: Sequence[Op | Erasure], fill: int
) -> torch.Tensor:
    """Apply ``drawn`` to ``image [3, S, S]`` uint8, in any memory layout and on any device.

    ``fill`` is the gray value of pixels that move in from outside. ``image`` is never changed; the
    result may share its memory if there was nothing to do.
    """
    for item in drawn:
        if isinstance(item, Erasure):
            box, image = item.box, image.clone()
            for channel, value in enumerate(item.color):
                image[channel, box.top : box.top + box.height, box.left : box.left + box.width] = (
                    value
                )
        elif item.name != "Identity":
            image = _KERNELS[item.name](image, item.magnitude, float(fill))
    return image


def draw_autoaugment(random: np.random.Generator, side_px: int) -> list[Op]:
    """Draw one of the 25 sub-policies, and each of its two operations with its probability."""
    return [
        _op(random, name, magnitude_bin, AUTOAUGMENT_BINS, _NARROW, side_px)
        for name, probability, magnitude_bin in _choice(random, _IMAGENET_POLICY)
        if random.random() < probability
    ]


def draw_randaugment(
    random: np.random.Generator, side_px: int, num_ops: int, magnitude_bin: int
) -> list[Op]:
    """Draw ``num_ops`` operations, with repetition, all at ``magnitude_bin`` (0 to 30)."""
    return [
        _op(random, _choice(random, _CHOICES), magnitude_bin, WIDE_BINS, _NARROW, side_px)
        for _ in range(num_ops)
    ]


def draw_trivialaugment(random: np.random.Generator) -> Op:
    """Draw one operation and its magnitude, each uniformly."""
    name = _choice(random, _CHOICES)
    magnitude_bin = _below(random, WIDE_BINS) if name in _WIDE else 0
    return _op(random, name, magnitude_bin, WIDE_BINS, _WIDE, 1)


def draw_color_jitter(random: np.random.Generator, data: DataConfig) -> list[Op]:
    """Draw those of brightness, contrast, saturation and hue that are on, in a random order.

    The first three are factors, uniform in ``[max(0, 1 - x), 1 + x]``; hue is uniform in
    ``[-x, x]``.
    """
    strengths = {
        "Brightness": data.colour_jitter_brightness,
        "Contrast": data.colour_jitter_contrast,
        "Color": data.colour_jitter_saturation,
        "Hue": data.colour_jitter_hue,
    }
    drawn = []
    for name, x in strengths.items():
        if x > 0:
            low, high = (-x, x) if name == "Hue" else (max(0.0, 1.0 - x), 1.0 + x)
            drawn.append(Op(name, low + (high - low) * random.random()))
    for last in range(len(drawn) - 1, 0, -1):
        other = _below(random, last + 1)
        drawn[last], drawn[other] = drawn[other], drawn[last]
    return drawn


def draw_erasing(random: np.random.Generator, data: DataConfig) -> list[Erasure]:
    """Draw the rectangle to erase, if any; area, logarithm of the ratio and position are uniform.

    If ten draws do not fit, nothing is erased. The color is the mean that images are normalized
    with.
    """
    if random.random() >= data.random_erasing:
        return []
    side = data.image_size
    log_min, log_max = math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])
    for _ in range(_ERASING_ATTEMPTS):
        share = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * random.random()
        ratio = math.exp(log_min + (log_max - log_min) * random.random())
        height = round(math.sqrt(side * side * share * ratio))
        width = round(math.sqrt(side * side * share / ratio))
        if height < side and width < side:
            top = _below(random, side - height + 1)
            left = _below(random, side - width + 1)
            color = tuple(min(max(round(255 * value), 0), 255) for value in data.mean)
            return [Erasure(CropBox(top, left, height, width), color)]
    return []


def _below(random: np.random.Generator, count: int) -> int:
    # Not `integers`: NumPy keeps only the stream of `random` the same across releases.
    return int(random.random() * count)


def _choice(random: np.random.Generator, options: Sequence[T]) -> T:
    return options[_below(random, len(options))]


def _op(
    random: np.random.Generator,
    name: str,
    magnitude_bin: int,
    bins: int,
    ranges: _Ranges,
    side_px: int,
) -> Op:
    """Return the operation with the magnitude of its bin, in the unit of `Op`, with random sign."""
    if name not in ranges:
        return Op(name, 0.0)
    low, high, is_signed = ranges[name]
    magnitude = low + (high - low) * magnitude_bin / (bins - 1)
    if is_signed and random.random() < 0.5:
        magnitude = -magnitude
    if name in _FACTORS:
        return Op(name, 1.0 + magnitude)
    if name in ("TranslateX", "TranslateY"):
        return Op(name, int(magnitude * side_px))
    return Op(name, round(magnitude) if name == "Posterize" else magnitude)


def _shear(image: torch.Tensor, x: float, y: float, fill: float) -> torch.Tensor:
    """Move each pixel by ``x`` times its row and ``y`` times its column.

    ``x`` and ``y`` are tangents of angles; the top left corner stays in place, as in the papers.
    """
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
    """Blend with the image smoothed by a 3 x 3 kernel of ones around a five, over 13.

    The border is unchanged. Sums of integers are exact, so the pixels equal those of torchvision's
    convolution, ten times faster.
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
    "Solarize": lambda image, low, _: ops.solarize(image, low),
    "AutoContrast": lambda image, *_: ops.autocontrast(image),
    "Equalize": lambda image, *_: ops.equalize(image),
    "Invert": lambda image, *_: ops.invert(image),
}
