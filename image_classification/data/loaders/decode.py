"""Decode, crop and resize one image with torchvision; the ``pytorch`` and DALI backends share it.

Images are decoded to RGB (grey, CMYK, palette and PNG content whatever the file's name). EXIF
orientation is not applied, as in the published runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.core.errors import DataError
from image_classification.data.formats.image_header import check_size
from image_classification.data.transforms import CropBox, EvalTransform, TrainTransform


def decode_rgb(content: npt.NDArray[np.uint8], name: str) -> torch.Tensor:
    """Return a JPEG, PNG, GIF or WebP as ``[3, H, W]`` uint8.

    content: ``[bytes]`` uint8, encoded. name: what errors call it.

    Raises:
        DataError: it cannot be decoded, is animated, or has too many pixels.
    """
    check_size(content, name)
    try:
        image: torch.Tensor = decode_image(torch.from_numpy(content), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DataError(f"cannot decode {name}: {error}: replace or remove it") from error
    if image.ndim != 3:
        raise DataError(
            f"cannot decode {name}: it is an animation of {len(image)} frames: replace or remove it"
        )
    if image.dtype != torch.uint8:  # PNG with 16 bits per channel
        image = ops.to_dtype(image, torch.uint8, scale=True)
    return image


def resized_crop(image: torch.Tensor, box: CropBox, transform: TrainTransform) -> torch.Tensor:
    """Scale ``box`` of ``image [3, H, W]`` uint8 to ``[3, S, S]``, using no pixel outside it."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    # torch's kernel takes half the time if the channels of a pixel lie side by side, as decoders
    # leave them, without gaps between rows.
    return resized(part.permute(1, 2, 0).contiguous().permute(2, 0, 1), transform)


def resized(part: torch.Tensor, transform: TrainTransform) -> torch.Tensor:
    """Scale ``part [3, H, W]`` uint8 to ``[3, S, S]``."""
    return _resize(part, transform.image_size, transform.image_size, transform)


def eval_image(image: torch.Tensor, transform: EvalTransform) -> torch.Tensor:
    """Resize and center-crop ``image [3, H, W]`` uint8 to ``[3, crop, crop]``."""
    width, height = transform.resized(image.shape[2], image.shape[1])
    whole = _resize(image, height, width, transform)
    box = transform.crop_box(width, height)
    return whole[:, box.top : box.top + box.height, box.left : box.left + box.width]


def _resize(
    image: torch.Tensor, height: int, width: int, transform: TrainTransform | EvalTransform
) -> torch.Tensor:
    # Not `ops.resize`, which holds the GIL for some time before it calls this kernel.
    scaled: torch.Tensor = ops.resize_image(
        image,
        size=[height, width],
        interpolation=InterpolationMode(transform.interpolation),
        antialias=transform.antialias,
    )
    return scaled
