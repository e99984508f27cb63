"""Decode, crop, resize, flip and augment with torchvision: what a loader process does.

Images are decoded to RGB (grey, CMYK, palette and PNG content whatever the file's name); EXIF
orientation is not applied, as in the published runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.core.errors import DataError
from image_classification.data.augment import augment
from image_classification.data.formats.image_header import check_size
from image_classification.data.formats.index import Index, VanishedError
from image_classification.data.loaders.device_prefetch import (
    MEMORY_FORMATS,
    HostBatch,
    replace_rows,
)
from image_classification.data.loaders.workers import NO_SHARED_MEMORY, move_to_shared_memory
from image_classification.data.order import PADDING, Indices, sample_random
from image_classification.data.transforms import CropBox, EvalTransform, TrainTransform, sample_crop

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
        index: Index,
        transform: TrainTransform | EvalTransform,
        seed: int,
        memory_format: str,
    ) -> None:
        # Tensors travel to the workers as shared memory, arrays would be copied to each.
        self._columns = {name: torch.from_numpy(a) for name, a in index.columns().items()}
        self._bare = index.with_columns({name: a[:0] for name, a in index.columns().items()})
        self._whole: Index | None = None
        self._transform = transform
        self._seed = seed
        # The name: a torch.memory_format does not unpickle where __main__ has imported torch.
        self._memory_format = memory_format

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None}

    @property
    def _index(self) -> Index:
        if self._whole is None:
            arrays = {name: column.numpy() for name, column in self._columns.items()}
            self._whole = self._bare.with_columns(arrays)
        return self._whole

    def name(self, index: int) -> str:
        """Return the name of image ``index``."""
        return self._index.name(index)

    def __getitem__(self, request: Request) -> HostBatch:
        batch = self._make(*request)
        if get_worker_info() is None:
            return batch
        if move_to_shared_memory((batch.images, batch.labels, batch.valid)):
            return batch
        nothing = torch.empty(0)
        return HostBatch(nothing, nothing, nothing, NO_SHARED_MEMORY)

    def _make(self, epoch: int, indices: Indices) -> HostBatch:
        transform = self._transform
        is_train = isinstance(transform, TrainTransform)
        side = transform.image_size if isinstance(transform, TrainTransform) else transform.crop
        shape = (len(indices), 3, side, side)
        layout = MEMORY_FORMATS[self._memory_format]
        images = torch.empty(shape, dtype=torch.uint8, memory_format=layout)
        wanted = torch.from_numpy(indices)
        valid = wanted != PADDING
        images[~valid] = 0
        labels = torch.where(valid, self._columns["labels"][wanted.clamp(min=0)], 0)
        lost: dict[int, tuple[str, str]] = {}
        for row, index in enumerate(indices.tolist()):
            if index == PADDING:
                continue
            try:
                image = decode_rgb(self._index.read(index), self._index.where(index))
            except DataError as error:
                # Raised here, it would reach the user wrapped in this process's traceback.
                if isinstance(error, VanishedError) or not is_train:
                    return HostBatch(images, labels, valid, error.message)
                lost[row] = (self._index.name(index), error.message)
                continue
            if isinstance(transform, TrainTransform):
                images[row] = self._train_image(image, transform, epoch, index)
            else:
                images[row] = eval_image(image, transform)
        if lost and len(lost) == len(indices):
            reason = f"no image of a micro-batch of {len(lost)} could be read: {lost[0][1]}"
            return HostBatch(images, labels, valid, reason)
        if lost:
            replace_rows(images, labels, tuple(lost))
        return HostBatch(images, labels, valid, "", tuple(lost.values()))

    def _train_image(
        self, image: torch.Tensor, transform: TrainTransform, epoch: int, index: int
    ) -> torch.Tensor:
        random = sample_random(self._seed, epoch, index)
        box = sample_crop(random, image.shape[2], image.shape[1], transform)
        crop = resized_crop(image, box, transform)
        if random.random() < transform.hflip_prob:
            crop = crop.flip(-1)
        return augment(crop, transform, random)


def decode_rgb(content: npt.NDArray[np.uint8], name: str) -> torch.Tensor:
    """Return the image as ``[3, H, W]`` uint8; JPEG, PNG, GIF or WebP by its content.

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
    if image.dtype != torch.uint8:  # PNG with 16 bits a channel
        image = ops.to_dtype(image, torch.uint8, scale=True)
    return image


def resized_crop(image: torch.Tensor, box: CropBox, transform: TrainTransform) -> torch.Tensor:
    """Scale ``box`` of ``image [3, H, W]`` uint8 to ``[3, S, S]``; nothing outside it is used."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    # With the channels of a pixel side by side, as decoders leave them, and no gap between rows
    # torch's kernel takes half the time.
    return resized(part.permute(1, 2, 0).contiguous().permute(2, 0, 1), transform)


def resized(part: torch.Tensor, transform: TrainTransform) -> torch.Tensor:
    """Scale the whole of ``part [3, H, W]`` uint8 to ``[3, S, S]``."""
    return _resize(part, transform.image_size, transform.image_size, transform)


def eval_image(image: torch.Tensor, transform: EvalTransform) -> torch.Tensor:
    """Resize and centre-crop ``image [3, H, W]`` uint8 to ``[3, crop, crop]``."""
    width, height = transform.resized(image.shape[2], image.shape[1])
    whole = _resize(image, height, width, transform)
    box = transform.crop_box(width, height)
    return whole[:, box.top : box.top + box.height, box.left : box.left + box.width]


def _resize(
    image: torch.Tensor, height: int, width: int, transform: TrainTransform | EvalTransform
) -> torch.Tensor:
    # The kernel itself: what `ops.resize` does before it holds up the other threads.
    scaled: torch.Tensor = ops.resize_image(
        image,
        size=[height, width],
        interpolation=_INTERPOLATION[transform.interpolation],
        antialias=transform.antialias,
    )
    return scaled
