"""Crop, flip and resize of an image, as plain values that every data backend follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError

_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class CropBox:
    """A rectangle of an image, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop (arXiv:1409.4842), flip, augmentation policy, color jitter, erasing.

    They are applied in this order to uint8 pixels, each if it is on.
    area: min and max share of the image's area that a crop has. The max may exceed 1, as in the
    published BI-V100 runs (0.08 to 1.25): draws above 1 never fit and are drawn again.
    ratio: min and max width / height of the crop. image_size: side of the result in pixels.
    augmentation: name of the policy. augmentation_fill: grey value of the pixels that a policy
    moves in from outside the image. jitter: see
    `image_classification.data.augment.draw_color_jitter`; 0 is off. erasing_color: the mean that
    images are normalized with, rounded to integers of 0..255.
    """

    area_min: float
    area_max: float
    ratio_min: float
    ratio_max: float
    hflip_prob: float
    image_size: int
    interpolation: str
    antialias: bool
    augmentation: str
    augmentation_fill: int
    randaugment_ops: int
    randaugment_magnitude: int
    jitter_brightness: float
    jitter_contrast: float
    jitter_saturation: float
    jitter_hue: float
    erasing_prob: float
    erasing_color: tuple[int, int, int]

    @property
    def side(self) -> int:
        """Side of the result in pixels."""
        return self.image_size


@dataclass(frozen=True)
class EvalTransform:
    """Resize, then center crop of ``crop`` x ``crop`` pixels.

    resize_mode ``short_side`` scales the shorter side to ``resize`` and keeps the aspect ratio;
    ``squash`` scales to ``resize`` x ``resize``.
    """

    resize: int
    resize_mode: str
    crop: int
    interpolation: str
    antialias: bool

    @property
    def side(self) -> int:
        """Side of the result in pixels."""
        return self.crop

    def resized(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) in pixels after the resize; the longer side is rounded down.

        No side is less than ``resize``, so the crop always fits.
        """
        if self.resize_mode == "squash":
            return self.resize, self.resize
        if width_px <= height_px:
            return self.resize, max(self.resize, self.resize * height_px // width_px)
        return max(self.resize, self.resize * width_px // height_px), self.resize

    def crop_box(self, width_px: int, height_px: int) -> CropBox:
        """Return the center crop of an image already resized to these sides."""
        top = round((height_px - self.crop) / 2)
        left = round((width_px - self.crop) / 2)
        return CropBox(top, left, self.crop, self.crop)


def image_transform(data: DataConfig, split: str) -> TrainTransform | EvalTransform:
    """Return `train_transform` or `eval_transform`."""
    return train_transform(data) if split == "train" else eval_transform(data)


def train_transform(data: DataConfig) -> TrainTransform:
    """Return the training transform of the configuration.

    Raises:
        ConfigError: a range of areas or ratios that is empty or not positive.
    """
    _check_range("crop_area", data.crop_area_min, data.crop_area_max)
    _check_range("crop_ratio", data.crop_ratio_min, data.crop_ratio_max)
    red, green, blue = data.mean
    return TrainTransform(
        area_min=data.crop_area_min,
        area_max=data.crop_area_max,
        ratio_min=data.crop_ratio_min,
        ratio_max=data.crop_ratio_max,
        hflip_prob=data.hflip_prob,
        image_size=data.image_size,
        interpolation=data.interpolation,
        antialias=data.antialias,
        augmentation=data.augmentation,
        augmentation_fill=data.augmentation_fill,
        randaugment_ops=data.randaugment_ops,
        randaugment_magnitude=data.randaugment_magnitude,
        jitter_brightness=data.colour_jitter_brightness,
        jitter_contrast=data.colour_jitter_contrast,
        jitter_saturation=data.colour_jitter_saturation,
        jitter_hue=data.colour_jitter_hue,
        erasing_prob=data.random_erasing,
        erasing_color=(_to_255(red), _to_255(green), _to_255(blue)),
    )


def eval_transform(data: DataConfig) -> EvalTransform:
    """Return the validation transform of the configuration.

    Raises:
        ConfigError: the crop is larger than the resized image.
    """
    if data.resize < data.image_size:
        raise ConfigError(
            f"data.resize {data.resize} is smaller than data.image_size {data.image_size}, the "
            f"validation crop: set data.resize to {data.image_size} or more"
        )
    return EvalTransform(
        resize=data.resize,
        resize_mode=data.resize_mode,
        crop=data.image_size,
        interpolation=data.interpolation,
        antialias=data.antialias,
    )


def sample_crop(
    random: np.random.Generator, width_px: int, height_px: int, transform: TrainTransform
) -> CropBox:
    """Draw the crop of an image of these sides, as torchvision's RandomResizedCrop does.

    Area, logarithm of the ratio, and position are uniform. If ten draws do not fit, the result is
    the largest centered crop whose ratio is in the range. Only ``random.random()`` is used.
    """
    area_px = width_px * height_px
    log_min, log_max = math.log(transform.ratio_min), math.log(transform.ratio_max)
    for _ in range(_CROP_ATTEMPTS):
        share = transform.area_min + (transform.area_max - transform.area_min) * random.random()
        ratio = math.exp(log_min + (log_max - log_min) * random.random())
        width = round(math.sqrt(area_px * share * ratio))
        height = round(math.sqrt(area_px * share / ratio))
        if 0 < width <= width_px and 0 < height <= height_px:
            top = int(random.random() * (height_px - height + 1))
            left = int(random.random() * (width_px - width + 1))
            return CropBox(top, left, height, width)
    width, height = width_px, height_px
    if width_px < transform.ratio_min * height_px:
        height = max(1, round(width_px / transform.ratio_min))
    elif width_px > transform.ratio_max * height_px:
        width = max(1, round(height_px * transform.ratio_max))
    return CropBox((height_px - height) // 2, (width_px - width) // 2, height, width)


def _to_255(share: float) -> int:
    return min(max(round(share * 255), 0), 255)


def _check_range(name: str, low: float, high: float) -> None:
    if not 0 < low <= high:
        raise ConfigError(
            f"data.{name}_min {low:g} to data.{name}_max {high:g} is no range: the min must be "
            f"above 0 and not above the max"
        )
