"""Which operations an image gets after its crop and flip, drawn as plain values.

AutoAugment's ImageNet policy (arXiv:1805.09501, table 9), RandAugment (arXiv:1909.13719),
TrivialAugment's wide space (arXiv:2103.10158), colour jitter and random erasing
(arXiv:1708.04896), with the magnitudes and the sampling torchvision has. Nothing here touches
pixels: `image_classification.data.augment` does.

What happens to a training image between its flip and its normalisation, in every backend.

The operations are drawn as plain values from the image's own random stream
(`image_classification.data.augment`) and applied here with torchvision's kernels for tensors, so
an image gets the same pixels from every backend, worker count and rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.data.transforms import CropBox, TrainTransform

AUTOAUGMENT_BINS = 10
WIDE_BINS = 31
"""Magnitude bins of RandAugment and TrivialAugment."""

_ERASED_AREA = (0.02, 0.33)
_ERASED_RATIO = (0.3, 3.3)
"""Height / width."""
_ERASING_ATTEMPTS = 10


class Op(NamedTuple):
    """One operation with the magnitude it was drawn at.

    Magnitudes: ShearX, ShearY the tangent of the angle; TranslateX, TranslateY whole pixels;
    Rotate degrees; Brightness, Color, Contrast, Sharpness a factor (1: unchanged); Hue a share of
    the colour circle; Posterize the bits kept; Solarize the least value inverted; 0 where the
    operation has none.
    """

    name: str
    magnitude: float


class Erasure(NamedTuple):
    """A rectangle of the image filled with one colour (red, green, blue, each 0 to 255)."""

    box: CropBox
    colour: tuple[int, int, int]


class _Range(NamedTuple):
    """Magnitudes of one operation over the bins, from ``low`` at bin 0 to ``high`` at the last."""

    low: float
    high: float
    signed: bool = False


_NARROW = {
    "ShearX": _Range(0.0, 0.3, signed=True),
    "ShearY": _Range(0.0, 0.3, signed=True),
    # A share of the image's side; the paper's 150 pixels are of 331.
    "TranslateX": _Range(0.0, 150 / 331, signed=True),
    "TranslateY": _Range(0.0, 150 / 331, signed=True),
    "Rotate": _Range(0.0, 30.0, signed=True),
    "Brightness": _Range(0.0, 0.9, signed=True),
    "Color": _Range(0.0, 0.9, signed=True),
    "Contrast": _Range(0.0, 0.9, signed=True),
    "Sharpness": _Range(0.0, 0.9, signed=True),
    "Posterize": _Range(8.0, 4.0),
    "Solarize": _Range(255.0, 0.0),
}
_WIDE = {
    "ShearX": _Range(0.0, 0.99, signed=True),
    "ShearY": _Range(0.0, 0.99, signed=True),
    # In pixels, whatever the image's side.
    "TranslateX": _Range(0.0, 32.0, signed=True),
    "TranslateY": _Range(0.0, 32.0, signed=True),
    "Rotate": _Range(0.0, 135.0, signed=True),
    "Brightness": _Range(0.0, 0.99, signed=True),
    "Color": _Range(0.0, 0.99, signed=True),
    "Contrast": _Range(0.0, 0.99, signed=True),
    "Sharpness": _Range(0.0, 0.99, signed=True),
    "Posterize": _Range(8.0, 2.0),
    "Solarize": _Range(255.0, 0.0),
}
_CHOICES = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
"""What RandAugment and TrivialAugment choose from, each as likely."""

_Step = tuple[str, float, int]
"""An operation, its probability, its bin of `AUTOAUGMENT_BINS` (0 where it has no magnitude)."""

_IMAGENET: tuple[tuple[_Step, _Step], ...] = (
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


def draw_autoaugment(random: np.random.Generator, side_px: int) -> tuple[Op, ...]:
    """Draw one of the 25 sub-policies; each of its two operations happens with its probability."""
    drawn = []
    for name, probability, step in _IMAGENET[_below(random, len(_IMAGENET))]:
        if random.random() < probability:
            at = _magnitude(_NARROW.get(name), step, AUTOAUGMENT_BINS)
            drawn.append(_finished(random, name, at, _NARROW, side_px))
    return tuple(drawn)


def draw_randaugment(
    random: np.random.Generator, side_px: int, num_ops: int, magnitude_bin: int
) -> tuple[Op, ...]:
    """Draw ``num_ops`` operations, with repetition, all at ``magnitude_bin`` (0 to 30)."""
    drawn = []
    for _ in range(num_ops):
        name = _CHOICES[_below(random, len(_CHOICES))]
        at = _magnitude(_NARROW.get(name), magnitude_bin, WIDE_BINS)
        drawn.append(_finished(random, name, at, _NARROW, side_px))
    return tuple(drawn)


def draw_trivialaugment(random: np.random.Generator) -> tuple[Op, ...]:
    """Draw one operation and its magnitude, each uniformly."""
    name = _CHOICES[_below(random, len(_CHOICES))]
    magnitude_bin = _below(random, WIDE_BINS) if name in _WIDE else 0
    at = _magnitude(_WIDE.get(name), magnitude_bin, WIDE_BINS)
    return (_finished(random, name, at, _WIDE, 1),)


def draw_colour_jitter(random: np.random.Generator, transform: TrainTransform) -> tuple[Op, ...]:
    """Draw brightness, contrast, saturation and hue where they are on, in a random order.

    The first three are factors uniform in ``[max(0, 1 - x), 1 + x]``, hue a turn uniform in
    ``[-x, x]``.
    """
    spans = (
        ("Brightness", transform.jitter_brightness),
        ("Contrast", transform.jitter_contrast),
        ("Color", transform.jitter_saturation),
        ("Hue", transform.jitter_hue),
    )
    drawn = []
    for name, x in spans:
        if x > 0:
            low, high = (-x, x) if name == "Hue" else (max(0.0, 1.0 - x), 1.0 + x)
            drawn.append(Op(name, low + (high - low) * random.random()))
    for last in range(len(drawn) - 1, 0, -1):
        other = _below(random, last + 1)
        drawn[last], drawn[other] = drawn[other], drawn[last]
    return tuple(drawn)


def draw_erasing(random: np.random.Generator, transform: TrainTransform) -> tuple[Erasure, ...]:
    """Draw the rectangle to erase, if any: area and the ratio's logarithm uniform, as the position.

    One that does not fit is drawn again, ten times at most; then nothing is erased.
    """
    if not random.random() < transform.erasing_prob:
        return ()
    side = transform.image_size
    log_min, log_max = math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])
    for _ in range(_ERASING_ATTEMPTS):
        share = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * random.random()
        ratio = math.exp(log_min + (log_max - log_min) * random.random())
        height = round(math.sqrt(side * side * share * ratio))
        width = round(math.sqrt(side * side * share / ratio))
        if height < side and width < side:
            top = _below(random, side - height + 1)
            left = _below(random, side - width + 1)
            return (Erasure(CropBox(top, left, height, width), transform.erasing_colour),)
    return ()


def _below(random: np.random.Generator, count: int) -> int:
    # Not `integers`: NumPy promises the stream of `random` alone across its releases.
    return int(random.random() * count)


def _magnitude(span: _Range | None, magnitude_bin: int, bins: int) -> float:
    if span is None:
        return 0.0
    return span.low + (span.high - span.low) * magnitude_bin / (bins - 1)


def _finished(
    random: np.random.Generator, name: str, at: float, spans: dict[str, _Range], side_px: int
) -> Op:
    """Give the magnitude its sign and turn it into the unit `Op` has."""
    if name in spans and spans[name].signed and random.random() < 0.5:
        at = -at
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return Op(name, 1.0 + at)
    if name in ("TranslateX", "TranslateY"):
        return Op(name, int(at * side_px))
    return Op(name, round(at) if name == "Posterize" else at)


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
