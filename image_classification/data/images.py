"""Decode, crop, resize, flip and augment with torchvision: what a loader process does.

Images are decoded to RGB (grey, CMYK, palette and PNG content whatever the file's name); EXIF
orientation is not applied, as in the published runs.
"""

from __future__ import annotations

import os
import stat

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.core.errors import DataError
from image_classification.data.augment import augment
from image_classification.data.feed import MEMORY_FORMATS, HostBatch
from image_classification.data.formats import ImageIndex, path_at
from image_classification.data.sharding import PADDING, Indices, sample_random
from image_classification.data.transforms import EvalTransform, TrainTransform, sample_crop

_INTERPOLATION = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

Request = tuple[int, Indices]
"""An epoch and the sample indices ``[N]`` of one micro-batch of it."""


class ImageBatches(Dataset[HostBatch]):
    """Decodes and transforms the images of one request; runs in the workers.

    What comes out depends on (seed, epoch, sample index) alone. DataLoader gives each worker one
    torch thread.
    """

    def __init__(
        self,
        index: ImageIndex,
        transform: TrainTransform | EvalTransform,
        seed: int,
        memory_format: str,
    ) -> None:
        self._folder = index.folder
        # Tensors travel to the workers as shared memory, arrays would be copied to each.
        self._labels = torch.from_numpy(index.labels)
        self._path_bytes = torch.from_numpy(index.path_bytes)
        self._path_ends = torch.from_numpy(index.path_ends)
        self._transform = transform
        self._seed = seed
        # The name: a torch.memory_format does not unpickle where __main__ has imported torch.
        self._memory_format = memory_format

    def __getitem__(self, request: Request) -> HostBatch:
        epoch, indices = request
        transform = self._transform
        side = transform.image_size if isinstance(transform, TrainTransform) else transform.crop
        shape = (len(indices), 3, side, side)
        layout = MEMORY_FORMATS[self._memory_format]
        images = torch.empty(shape, dtype=torch.uint8, memory_format=layout).zero_()
        wanted = torch.from_numpy(indices)
        valid = wanted != PADDING
        labels = torch.where(valid, self._labels[wanted.clamp(min=0)], 0)
        for row, index in enumerate(indices.tolist()):
            if index == PADDING:
                continue
            path = self._path(index)
            try:
                image = decode_rgb(path)
            except DataError as error:
                # Raised here, it would reach the user wrapped in this process's traceback.
                return HostBatch(images, labels, valid, error.message)
            if isinstance(transform, TrainTransform):
                images[row] = self._train_image(image, transform, epoch, index)
            else:
                images[row] = eval_image(image, transform)
        return HostBatch(images, labels, valid, "")

    def _train_image(
        self, image: torch.Tensor, transform: TrainTransform, epoch: int, index: int
    ) -> torch.Tensor:
        random = sample_random(self._seed, epoch, index)
        box = sample_crop(random, image.shape[2], image.shape[1], transform)
        side = transform.image_size
        crop: torch.Tensor = ops.resized_crop(
            image,
            box.top,
            box.left,
            box.height,
            box.width,
            size=[side, side],
            interpolation=_INTERPOLATION[transform.interpolation],
            antialias=transform.antialias,
        )
        if random.random() < transform.hflip_prob:
            crop = crop.flip(-1)
        return augment(crop, transform, random)

    def _path(self, index: int) -> str:
        return path_at(self._folder, self._path_bytes.numpy(), self._path_ends.numpy(), index)


def decode_rgb(path: str) -> torch.Tensor:
    """Return the image as ``[3, H, W]`` uint8; JPEG, PNG, GIF or WebP by its content.

    Raises:
        DataError: the file cannot be read or decoded, or is animated.
    """
    try:
        # Opening a named pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RuntimeError("it is not a file")
        content = np.fromfile(path, dtype=np.uint8)
        if not len(content):
            raise RuntimeError("the file is empty")
        image: torch.Tensor = decode_image(torch.from_numpy(content), mode=ImageReadMode.RGB)
        if image.ndim != 3:
            raise RuntimeError(f"it is an animation of {len(image)} frames")
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot decode {path}: {reason}: replace or remove the file") from error
    if image.dtype != torch.uint8:  # PNG with 16 bits a channel
        image = ops.to_dtype(image, torch.uint8, scale=True)
    return image


def eval_image(image: torch.Tensor, transform: EvalTransform) -> torch.Tensor:
    """Resize and centre-crop ``image [3, H, W]`` uint8 to ``[3, crop, crop]``."""
    width, height = transform.resized(image.shape[2], image.shape[1])
    resized: torch.Tensor = ops.resize(
        image,
        size=[height, width],
        interpolation=_INTERPOLATION[transform.interpolation],
        antialias=transform.antialias,
    )
    box = transform.crop_box(width, height)
    return resized[:, box.top : box.top + box.height, box.left : box.left + box.width]
