"""The host's share of a DALI backend: reading, drawing crops, and finishing what DALI decoded.

The steps of an image are those of `image_classification.data.loaders.decode`, in the same order and
from the same random stream; DALI takes the decoder's place, and on a GPU the resampler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from image_classification.core.errors import DataError
from image_classification.data.augment import augment
from image_classification.data.formats.image_header import MAX_PIXELS, plain_jpeg_size
from image_classification.data.formats.index import Index, VanishedError
from image_classification.data.loaders.decode import (
    decode_rgb,
    eval_image,
    resized,
    resized_crop,
)
from image_classification.data.order import sample_random
from image_classification.data.transforms import (
    CropBox,
    EvalTransform,
    TrainTransform,
    sample_crop,
)


class Cut(NamedTuple):
    """One image to decode.

    content: the whole file, ``[bytes]`` uint8. box: the part of it to decode. source: what of
    that part is scaled to the result, as (top, left, bottom, right) in pixels of the part, a
    right below left mirroring it; not used without a `Resample`.
    """

    content: npt.NDArray[np.uint8]
    box: CropBox
    source: tuple[float, float, float, float]


@dataclass
class Sample:
    """One image of a micro-batch on its way.

    row: its place there. box: the part of the image that is needed. random: the image's stream,
    crop and flip drawn (train only). Of ``content`` (encoded, for DALI) and ``decoded`` (``[3, H,
    W]`` uint8, the whole image) exactly one is there, unless ``lost`` says why there is neither.
    """

    index: int
    row: int
    box: CropBox = field(default_factory=lambda: CropBox(0, 0, 0, 0))
    is_flipped: bool = False
    random: np.random.Generator | None = None
    content: npt.NDArray[np.uint8] | None = None
    decoded: torch.Tensor | None = None
    lost: str = ""


class SampleWork:
    """What is done to single images, by any number of threads at once.

    DALI gets the JPEGs that every decoder reads alike. PNG, CMYK, what looks damaged and what DALI
    has refused goes through torchvision's decoder: then an image is broken in every backend or in
    none.
    """

    def __init__(self, index: Index, transform: TrainTransform | EvalTransform, seed: int) -> None:
        self._index = index
        self._transform = transform
        self._seed = seed
        self._refused: set[int] = set()

    @property
    def side(self) -> int:
        """Side of the finished images, in pixels."""
        transform = self._transform
        return transform.image_size if isinstance(transform, TrainTransform) else transform.crop

    def prepare(self, epoch: int, samples: Sequence[Sample]) -> None:
        """Read ``samples`` and draw their crops; an image that cannot be read is ``lost``.

        Raises:
            VanishedError: the data set itself is gone.
        """
        for sample in samples:
            try:
                content = self._index.read(sample.index)
                width, height = self._source(sample, content)
            except VanishedError:
                raise
            except DataError as error:
                sample.lost = error.message
                continue
            self._draw(epoch, sample, width, height)

    def take_over(self, sample: Sample) -> None:
        """Decode with torchvision what DALI has refused."""
        assert sample.content is not None
        self._refused.add(sample.index)
        content, sample.content = sample.content, None
        try:
            sample.decoded = decode_rgb(content, self._index.where(sample.index))
        except DataError as error:
            sample.lost = error.message

    def cut(self, sample: Sample) -> Cut:
        """Return what DALI is to decode of ``sample``, and how it would scale it."""
        assert sample.content is not None
        box, transform = sample.box, self._transform
        if isinstance(transform, TrainTransform):
            left, right = (box.width, 0) if sample.is_flipped else (0, box.width)
            return Cut(sample.content, box, (0.0, float(left), float(box.height), float(right)))
        width, height = transform.resized(box.width, box.height)
        crop = transform.crop_box(width, height)
        down, across = box.height / height, box.width / width
        return Cut(
            sample.content,
            box,
            (
                crop.top * down,
                crop.left * across,
                (crop.top + crop.height) * down,
                (crop.left + crop.width) * across,
            ),
        )

    def finish(self, sample: Sample, part: torch.Tensor | None) -> torch.Tensor:
        """Return the finished image, ``[3, S, S]`` uint8.

        part: ``[h, w, 3]`` uint8, ``sample.box`` of the image; None where ``sample.decoded`` has
        the whole.
        """
        transform = self._transform
        whole = sample.decoded if part is None else part.permute(2, 0, 1)
        assert whole is not None
        if isinstance(transform, EvalTransform):
            return eval_image(whole, transform)
        if part is None:
            image = resized_crop(whole, sample.box, transform)
        else:
            image = resized(whole, transform)
        return self.augmented(sample, image.flip(-1) if sample.is_flipped else image)

    def augmented(self, sample: Sample, image: torch.Tensor) -> torch.Tensor:
        """Return ``image [3, S, S]``, resized and flipped, with what comes after that.

        It is ``image`` itself where nothing does.
        """
        if isinstance(self._transform, EvalTransform):
            return image
        assert sample.random is not None
        return augment(image, self._transform, sample.random)

    def _source(self, sample: Sample, content: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Choose the decoder; return (width, height) of the image."""
        size = None if sample.index in self._refused else plain_jpeg_size(content)
        if size is not None and size[0] * size[1] <= MAX_PIXELS:
            sample.content = content
            return size
        sample.decoded = decode_rgb(content, self._index.where(sample.index))
        return sample.decoded.shape[2], sample.decoded.shape[1]

    def _draw(self, epoch: int, sample: Sample, width: int, height: int) -> None:
        transform = self._transform
        if isinstance(transform, EvalTransform):
            sample.box = CropBox(0, 0, height, width)
            return
        sample.random = sample_random(self._seed, epoch, sample.index)
        sample.box = sample_crop(sample.random, width, height, transform)
        sample.is_flipped = sample.random.random() < transform.hflip_prob
