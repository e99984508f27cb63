"""Decode micro-batches with DALI: `HostSteps` before and after it, `DaliDecoder` in between.

Which images, crops and flips are decoded is decided outside DALI, from the same random numbers and
in the same order as in the ``pytorch`` backend. So a run can continue at any step, and no state of
DALI needs saving.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from image_classification.config.schema import DataConfig
from image_classification.core.errors import DataError
from image_classification.data.augment import augment
from image_classification.data.formats.image_header import MAX_PIXELS, plain_jpeg_size
from image_classification.data.formats.index import Index, VanishedError
from image_classification.data.loaders import LoaderSpec
from image_classification.data.order import sample_random
from image_classification.data.transforms import (
    CropBox,
    center_crop,
    decode_rgb,
    eval_image,
    eval_size,
    resized,
    resized_crop,
    sample_crop,
)

_MIB = 2**20
_NO_BOX = CropBox(0, 0, 0, 0)


@dataclass
class Sample:
    """One image of a micro-batch while it is made.

    row: its position in the micro-batch. box: the part of the image to decode. source: what of that
    part is scaled to the result, as (top, left, bottom, right) in pixels of the part; right < left
    mirrors it. random: the image's generator after crop and flip were drawn (train only).
    Exactly one of these is set: ``content``, ``[bytes]`` uint8, the file for DALI; ``decoded``,
    ``[3, H, W]`` uint8, the whole image; ``error``, why there is neither. part: ``[h, w, 3]``
    uint8, what DALI has made of ``content``.
    """

    index: int
    row: int
    box: CropBox = _NO_BOX
    source: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    is_flipped: bool = False
    random: np.random.Generator | None = None
    content: npt.NDArray[np.uint8] | None = None
    decoded: torch.Tensor | None = None
    error: str = ""
    part: torch.Tensor | None = None


class HostSteps:
    """What the host does to single images; safe to call from several threads.

    DALI gets only JPEGs that all decoders decode in the same way. `decode_rgb` decodes everything
    else, as in the ``pytorch`` backend: other formats, CMYK, damaged files and what DALI has
    refused. So an image is undecodable in every backend or in none.
    """

    def __init__(self, index: Index, spec: LoaderSpec) -> None:
        self._index = index
        self._spec = spec
        self._refused: set[int] = set()

    def prepare(self, epoch: int, samples: Sequence[Sample]) -> None:
        """Read ``samples`` and draw their crops; set ``error`` of those that cannot be read.

        Raises:
            VanishedError: the data set itself is gone.
        """
        upright = self._spec.data.exif_orientation
        for sample in samples:
            try:
                content = self._index.read(sample.index)
                refused = sample.index in self._refused
                size = None if refused else plain_jpeg_size(content, upright)
                if size is not None and size[0] * size[1] <= MAX_PIXELS:
                    sample.content = content
                else:
                    where = self._index.where(sample.index)
                    sample.decoded = decode_rgb(content, where, upright)
                    size = sample.decoded.shape[2], sample.decoded.shape[1]
            except VanishedError:
                raise
            except DataError as error:
                sample.error = error.message
                continue
            self._draw(epoch, sample, *size)

    def decode(self, sample: Sample) -> None:
        """Decode with torchvision an image that DALI has refused."""
        assert sample.content is not None
        self._refused.add(sample.index)
        content, sample.content = sample.content, None
        where, upright = self._index.where(sample.index), self._spec.data.exif_orientation
        try:
            sample.decoded = decode_rgb(content, where, upright)
        except DataError as error:
            sample.error = error.message

    def finish(self, sample: Sample) -> torch.Tensor:
        """Return the finished image, ``[3, S, S]`` uint8, if DALI does not resize."""
        data = self._spec.data
        image = sample.decoded if sample.part is None else sample.part.permute(2, 0, 1)
        assert image is not None
        if self._spec.split == "val":
            return eval_image(image, data)
        if sample.part is None:
            image = resized_crop(image, sample.box, data)
        else:
            image = resized(image, data.image_size, data.image_size, data)
        return self.augmented(sample, image.flip(-1) if sample.is_flipped else image)

    def augmented(self, sample: Sample, image: torch.Tensor) -> torch.Tensor:
        """Return ``image [3, S, S]``, resized and flipped, after augmentation.

        The result is ``image`` itself if there is no augmentation.
        """
        return image if sample.random is None else augment(image, self._spec.data, sample.random)

    def _draw(self, epoch: int, sample: Sample, width_px: int, height_px: int) -> None:
        data = self._spec.data
        if self._spec.split == "val":
            sample.box = CropBox(0, 0, height_px, width_px)
            width, height = eval_size(width_px, height_px, data)
            crop = center_crop(width, height, data.image_size)
            scale_y, scale_x = height_px / height, width_px / width
            bottom, right = crop.top + crop.height, crop.left + crop.width
            sample.source = (
                crop.top * scale_y,
                crop.left * scale_x,
                bottom * scale_y,
                right * scale_x,
            )
            return
        sample.random = sample_random(self._spec.seed, epoch, sample.index)
        sample.box = box = sample_crop(sample.random, width_px, height_px, data)
        sample.is_flipped = sample.random.random() < data.hflip_prob
        left, right = (box.width, 0) if sample.is_flipped else (0, box.width)
        sample.source = (0.0, float(left), float(box.height), float(right))


class Decoded(NamedTuple):
    """The decoded images, in the order they were submitted.

    images: ``[H, W, 3]`` uint8 each, None for one that DALI cannot decode. together: all of them
    as ``[N, S, S, 3]`` in the same memory, if they have one size and none is missing.
    """

    images: list[torch.Tensor | None]
    together: torch.Tensor | None


class DaliDecoder:
    """A DALI pipeline that continues after images it cannot decode. Not thread-safe.

    max_batch: of images submitted together. resizes: whether DALI also scales to ``data``'s size;
    its nearest neighbor picks other pixels than torchvision's. device_index: of the GPU that
    decodes; None to do everything on the CPU, for which no driver is needed.
    """

    def __init__(
        self, data: DataConfig, max_batch: int, resizes: bool, device_index: int | None
    ) -> None:
        self._settings = (data, max_batch, resizes, device_index)
        self._resizes = resizes
        self._pipeline = _build(*self._settings)
        self._running: deque[list[Sample]] = deque()

    @property
    def num_running(self) -> int:
        """Number of submitted batches that were not collected yet."""
        return len(self._running)

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queue the ``content`` of ``samples`` for decoding: none to ``max_batch`` of them.

        At most two batches may be queued at a time; the second is decoded after the first is
        collected.
        """
        assert len(self._running) < 2, "collect the batch before this one first"
        self._running.append(list(samples))
        self._feed(self._running[-1])
        if len(self._running) == 1:
            self._start_first()

    def collect(self) -> Decoded:
        """Wait for the batch that was submitted first, and start the next one.

        The tensors keep the memory they were decoded into for as long as they live.
        """
        samples = self._running.popleft()
        try:
            decoded = self._pipeline.outputs()[0] if samples else None
        except RuntimeError:
            # One undecodable image fails the whole batch, so decode the images one by one.
            self._pipeline = _build(*self._settings)  # a pipeline that raised may be unusable
            one_by_one = Decoded([self._decode_one(sample) for sample in samples], None)
            for waiting in self._running:
                self._feed(waiting)
            self._start_first()
            return one_by_one
        self._start_first()
        return Decoded([], None) if decoded is None else self._tensors(decoded)

    def _decode_one(self, sample: Sample) -> torch.Tensor | None:
        try:
            self._feed([sample])
            self._pipeline.schedule_run()
            return self._tensors(self._pipeline.outputs()[0]).images[0]
        except RuntimeError:
            self._pipeline = _build(*self._settings)
            return None

    def _start_first(self) -> None:
        if self._running and self._running[0]:
            self._pipeline.schedule_run()

    def _feed(self, samples: list[Sample]) -> None:
        if not samples:
            return
        feed = self._pipeline.feed_input
        boxes = [sample.box for sample in samples]
        feed("content", [sample.content for sample in samples])
        feed("corner", np.array([(box.top, box.left) for box in boxes], dtype=np.int32))
        feed("shape", np.array([(box.height, box.width) for box in boxes], dtype=np.int32))
        if self._resizes:
            feed("from", np.array([sample.source[:2] for sample in samples], dtype=np.float32))
            feed("to", np.array([sample.source[2:] for sample in samples], dtype=np.float32))

    def _tensors(self, decoded: Any) -> Decoded:
        if self._resizes:
            together = from_dlpack(decoded.as_tensor())
            return Decoded(list(together.unbind()), together)
        return Decoded([from_dlpack(image) for image in decoded], None)


def _build(data: DataConfig, max_batch: int, resizes: bool, device_index: int | None) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    gpu_options: dict[str, Any] = {}
    if device_index is not None:
        gpu_options = {
            "hw_decoder_load": data.hw_decoder_load,
            # Allocated at the start: a later allocation for a larger image would wait for the GPU.
            "device_memory_padding": data.device_memory_padding_mib * _MIB,
        }

    def define() -> Any:
        content = fn.external_source(name="content", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image_slice(
            content,
            start=fn.external_source(name="corner", dtype=types.INT32, ndim=1),
            shape=fn.external_source(name="shape", dtype=types.INT32, ndim=1),
            axes=[0, 1],
            device="cpu" if device_index is None else "mixed",
            output_type=types.RGB,
            adjust_orientation=data.exif_orientation,  # the boxes are of the upright image
            jpeg_fancy_upsampling=True,  # as torchvision's decoder does
            **gpu_options,
        )
        if not resizes:
            return images
        filters = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
        return fn.resize(
            images,
            size=[data.image_size, data.image_size],
            roi_start=fn.external_source(name="from", dtype=types.FLOAT, ndim=1),
            roi_end=fn.external_source(name="to", dtype=types.FLOAT, ndim=1),
            interp_type=filters[data.interpolation],
            antialias=data.antialias,
            dtype=types.UINT8,
        )

    pipeline = pipeline_def(
        batch_size=max_batch,
        num_threads=max(1, data.workers),
        device_id=device_index,
        prefetch_queue_depth=1,  # one batch is decoded while the one before is finished
        exec_dynamic=True,  # DALI's older executor overwrites pixels that are still in use
    )(define)()
    pipeline.build()
    return pipeline
