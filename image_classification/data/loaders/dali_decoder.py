"""DALI as a decoder of crops: bytes and rectangles in, pixels out, a micro-batch at a time.

Which images, crops and flips is decided outside, as for every backend; so a run may continue at
any step and nothing in here has a state to save.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch.utils.dlpack import from_dlpack

from image_classification.data.loaders.dali_samples import Cut
from image_classification.data.transforms import CropBox

_FILTERS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


@dataclass(frozen=True)
class Resample:
    """How DALI is to scale what it decoded.

    size: side of the result in pixels. interpolation: ``bilinear`` or ``bicubic``; DALI's nearest
    neighbour is another pixel than torchvision's.
    """

    size: int
    interpolation: str
    antialias: bool


@dataclass(frozen=True)
class GpuDecoding:
    """Settings of the GPU's decoder.

    hw_load: share of the JPEGs given to the hardware decoder, where the GPU has one; the rest go
    to its general cores. memory_padding_bytes: device memory taken at the start, so that larger
    images later need no new allocation, which would wait for the GPU.
    """

    device_index: int
    hw_load: float
    memory_padding_bytes: int


class Decoded(NamedTuple):
    """What became of the submitted images, in their order.

    images: ``[H, W, 3]`` uint8 each, None for one that DALI cannot decode. together: all of them
    as ``[N, S, S, 3]`` in the same memory, where they have one size and none is missing.
    """

    images: list[torch.Tensor | None]
    together: torch.Tensor | None


class DaliDecoder:
    """One DALI pipeline, and what it does about an image that it cannot decode.

    Without ``gpu`` everything happens on the CPU and no driver is needed. Not for several threads
    at once.
    """

    def __init__(
        self, max_batch: int, threads: int, resample: Resample | None, gpu: GpuDecoding | None
    ) -> None:
        self._settings = (max_batch, threads, resample, gpu)
        self._has_resample = resample is not None
        self._pipeline = _build(*self._settings)
        self._running: deque[list[Cut]] = deque()

    @property
    def num_running(self) -> int:
        """How many times `submit` waits for its `collect`."""
        return len(self._running)

    def submit(self, cuts: Sequence[Cut]) -> None:
        """Hand over ``cuts``, at most ``max_batch`` of them; none at all is fine.

        They are decoded at once, or after the batch before them, for which `collect` is still to
        be called; more than that one may not wait.
        """
        assert len(self._running) < 2, "collect the batch before this one first"
        self._running.append(list(cuts))
        self._feed(self._running[-1])
        if len(self._running) == 1:
            self._start_first()

    def collect(self) -> Decoded:
        """Wait for the batch that was submitted first, and start the one behind it.

        The tensors lie where they were decoded and keep that memory for as long as they live.
        """
        assert self._running, "nothing was submitted"
        cuts = self._running.popleft()
        try:
            decoded = self._pipeline.outputs()[0] if cuts else None
        except RuntimeError:
            # The whole batch is lost with one image, so the images go through one by one.
            self._pipeline = _build(*self._settings)  # one that raised may be unusable
            alone = Decoded([self._alone(cut) for cut in cuts], None)
            for waiting in self._running:
                self._feed(waiting)
            self._start_first()
            return alone
        self._start_first()
        return Decoded([], None) if decoded is None else self._tensors(decoded)

    def _alone(self, cut: Cut) -> torch.Tensor | None:
        try:
            self._feed([cut])
            self._pipeline.schedule_run()
            return self._tensors(self._pipeline.outputs()[0]).images[0]
        except RuntimeError:
            self._pipeline = _build(*self._settings)
            return None

    def _start_first(self) -> None:
        if self._running and self._running[0]:
            self._pipeline.schedule_run()

    def _feed(self, cuts: list[Cut]) -> None:
        if not cuts:
            return
        pipeline = self._pipeline
        pipeline.feed_input("content", [cut.content for cut in cuts])
        boxes = np.array([_corner_and_shape(cut.box) for cut in cuts])
        pipeline.feed_input("corner", np.ascontiguousarray(boxes[:, :2], dtype=np.int32))
        pipeline.feed_input("shape", np.ascontiguousarray(boxes[:, 2:], dtype=np.int32))
        if self._has_resample:
            source = np.array([cut.source for cut in cuts], dtype=np.float32)
            pipeline.feed_input("from", np.ascontiguousarray(source[:, :2]))
            pipeline.feed_input("to", np.ascontiguousarray(source[:, 2:]))

    def _tensors(self, decoded: Any) -> Decoded:
        if self._has_resample:
            together = from_dlpack(decoded.as_tensor())
            return Decoded(list(together.unbind()), together)
        return Decoded([from_dlpack(image) for image in decoded], None)


def _corner_and_shape(box: CropBox) -> tuple[int, int, int, int]:
    return box.top, box.left, box.height, box.width


def _build(max_batch: int, threads: int, resample: Resample | None, gpu: GpuDecoding | None) -> Any:
    mixed: dict[str, Any] = {}
    if gpu is not None:
        mixed = {
            "hw_decoder_load": gpu.hw_load,
            "device_memory_padding": gpu.memory_padding_bytes,
        }

    def define() -> Any:
        content = fn.external_source(name="content", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image_slice(
            content,
            start=fn.external_source(name="corner", dtype=types.INT32, ndim=1),
            shape=fn.external_source(name="shape", dtype=types.INT32, ndim=1),
            axes=[0, 1],
            device="cpu" if gpu is None else "mixed",
            output_type=types.RGB,
            adjust_orientation=False,  # as in the published runs
            # The upsampling of colour that torchvision's decoder does as well.
            jpeg_fancy_upsampling=True,
            **mixed,
        )
        if resample is None:
            return images
        return fn.resize(
            images,
            size=[resample.size, resample.size],
            roi_start=fn.external_source(name="from", dtype=types.FLOAT, ndim=1),
            roi_end=fn.external_source(name="to", dtype=types.FLOAT, ndim=1),
            interp_type=_FILTERS[resample.interpolation],
            antialias=resample.antialias,
            dtype=types.UINT8,
        )

    pipeline = pipeline_def(
        batch_size=max_batch,
        num_threads=threads,
        device_id=None if gpu is None else gpu.device_index,
        prefetch_queue_depth=1,  # one batch is decoded while the one before is finished
    )(define)()
    pipeline.build()
    return pipeline
