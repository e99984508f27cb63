"""Decode, crop, flip and resize an image, in the same way in every data backend.

Images are decoded to RGB by their content, whatever the file's name: gray, CMYK, palette and 16-bit
images too; transparency is dropped, and of an animation the first image is taken. EXIF orientation
is applied if ``data.exif_orientation`` says so: the published runs ignore it.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats.image_header import (
    check_size,
    exif_orientation,
    is_turned,
)

_CROP_ATTEMPTS = 10
_TORCHVISION_STARTS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")
_PIL_FORMATS = ("GIF", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class CropBox:
    """A rectangle of an image, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int


def check_transform(data: DataConfig, split: str) -> None:
    """Raise ConfigError if the sizes or ranges of ``split``'s transform contradict each other."""
    if split == "train":
        for name in ("crop_area", "crop_ratio"):
            low, high = getattr(data, f"{name}_min"), getattr(data, f"{name}_max")
            if not 0 < low <= high:
                raise ConfigError(
                    f"data.{name}_min {low:g} to data.{name}_max {high:g} is not a range: the min "
                    f"must be above 0 and not above the max"
                )
    elif data.resize < data.image_size:
        raise ConfigError(
            f"data.resize {data.resize} is smaller than data.image_size {data.image_size}, the "
            f"validation crop: set data.resize to {data.image_size} or more"
        )


def sample_crop(
    random: np.random.Generator, width_px: int, height_px: int, data: DataConfig
) -> CropBox:
    """Draw the crop of a train image of these sides (arXiv:1409.4842, torchvision's sampling).

    Area, logarithm of the ratio (width / height), and position are uniform. If ten draws do not
    fit, the result is the largest centered crop whose ratio is in the range. Only
    ``random.random()`` is used. ``crop_area_max`` may exceed 1, as in the published BI-V100 runs
    (0.08 to 1.25): draws above 1 never fit and are drawn again.
    """
    area_px = width_px * height_px
    log_min, log_max = math.log(data.crop_ratio_min), math.log(data.crop_ratio_max)
    for _ in range(_CROP_ATTEMPTS):
        share = data.crop_area_min + (data.crop_area_max - data.crop_area_min) * random.random()
        ratio = math.exp(log_min + (log_max - log_min) * random.random())
        width = round(math.sqrt(area_px * share * ratio))
        height = round(math.sqrt(area_px * share / ratio))
        if 0 < width <= width_px and 0 < height <= height_px:
            top = int(random.random() * (height_px - height + 1))
            left = int(random.random() * (width_px - width + 1))
            return CropBox(top, left, height, width)
    width, height = width_px, height_px
    if width_px < data.crop_ratio_min * height_px:
        height = max(1, round(width_px / data.crop_ratio_min))
    elif width_px > data.crop_ratio_max * height_px:
        width = max(1, round(height_px * data.crop_ratio_max))
    return CropBox((height_px - height) // 2, (width_px - width) // 2, height, width)


def eval_size(width_px: int, height_px: int, data: DataConfig) -> tuple[int, int]:
    """Return (width, height) in pixels of a validation image after its resize.

    ``short_side`` scales the shorter side to ``data.resize`` and rounds the longer side down;
    ``squash`` scales both. No side is less than ``data.resize``, so the crop always fits.
    """
    size = data.resize
    if data.resize_mode == "squash":
        return size, size
    if width_px <= height_px:
        return size, max(size, size * height_px // width_px)
    return max(size, size * width_px // height_px), size


def center_crop(width_px: int, height_px: int, side_px: int) -> CropBox:
    """Return the square of ``side_px`` in the center of an image of these sides."""
    top, left = round((height_px - side_px) / 2), round((width_px - side_px) / 2)
    return CropBox(top, left, side_px, side_px)


def decode_rgb(content: npt.NDArray[np.uint8], name: str, upright: bool = False) -> torch.Tensor:
    """Return an image as ``[3, H, W]`` uint8; ``name`` is what errors call it.

    JPEG, PNG, GIF and WebP are decoded by torchvision; BMP, TIFF, animated WebP and (with
    pillow-heif) HEIC by Pillow. upright: apply the EXIF orientation.

    Raises:
        DataError: it cannot be decoded, or has too many pixels.
    """
    check_size(content, name)
    try:
        if content[:4].tobytes().startswith(_TORCHVISION_STARTS) and not _is_animated_webp(content):
            image: torch.Tensor = decode_image(torch.from_numpy(content), mode=ImageReadMode.RGB)
        else:
            image = _decode_with_pillow(content)
    except RuntimeError as error:
        raise DataError(f"cannot decode {name}: {error}: replace or remove it") from error
    if image.ndim != 3:  # an animated GIF
        image = image[0]
    if image.dtype != torch.uint8:  # PNG with 16 bits per channel
        image = ops.to_dtype(image, torch.uint8, scale=True)
    return turned(image, exif_orientation(content)) if upright else image


def turned(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return ``image [3, H, W]``, stored with this EXIF orientation, as it should be seen."""
    if is_turned(orientation):
        image = image.transpose(1, 2)
    if orientation in (2, 3, 6, 7):
        image = image.flip(2)
    if orientation in (3, 4, 7, 8):
        image = image.flip(1)
    return image


def _is_animated_webp(content: npt.NDArray[np.uint8]) -> bool:
    return content[12:16].tobytes() == b"VP8X" and bool(content[20] & 2)


def _decode_with_pillow(content: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return the (first) image as ``[3, H, W]`` uint8. Raises RuntimeError."""
    formats: tuple[str, ...] = _PIL_FORMATS
    if content[4:8].tobytes() == b"ftyp":
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise RuntimeError("HEIC images need pillow-heif (pip install pillow-heif)") from error
        register_heif_opener()
        formats = ("HEIF",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images (the size is checked) and odd tags
        # Pillow raises exceptions of every kind.
        try:
            with Image.open(io.BytesIO(content.tobytes()), formats=formats) as image:
                return rgb_of(image)
        except Exception as error:
            raise RuntimeError(" ".join(str(error).split())) from error


def rgb_of(image: Image.Image) -> torch.Tensor:
    """Return a Pillow image of any mode as ``[3, H, W]`` uint8, without its transparency."""
    if image.mode.startswith("I;16"):  # which `convert` would cut off at 255
        gray = np.asarray(image).astype(np.float32) / 257
        rgb = np.repeat(np.round(gray).astype(np.uint8)[..., None], 3, axis=2)
    else:
        rgb = np.array(image.convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1)


def resized_crop(image: torch.Tensor, box: CropBox, data: DataConfig) -> torch.Tensor:
    """Scale ``box`` of ``image [3, H, W]`` uint8 to ``[3, S, S]``, using no pixel outside it."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    # torch's kernel takes half the time if the channels of a pixel lie side by side, as decoders
    # leave them, without gaps between rows.
    part = part.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return resized(part, data.image_size, data.image_size, data)


def eval_image(image: torch.Tensor, data: DataConfig) -> torch.Tensor:
    """Resize and center-crop ``image [3, H, W]`` uint8 to ``[3, S, S]``."""
    width, height = eval_size(image.shape[2], image.shape[1], data)
    whole = resized(image, height, width, data)
    box = center_crop(width, height, data.image_size)
    return whole[:, box.top : box.top + box.height, box.left : box.left + box.width]


def resized(image: torch.Tensor, height: int, width: int, data: DataConfig) -> torch.Tensor:
    """Scale ``image [3, H, W]`` uint8 to ``[3, height, width]``."""
    # Not `ops.resize`, which holds the GIL for some time before it calls this kernel.
    scaled: torch.Tensor = ops.resize_image(
        image,
        size=[height, width],
        interpolation=InterpolationMode(data.interpolation),
        antialias=data.antialias,
    )
    return scaled
