"""Normalising on the host: the arithmetic of `feed.normalise`, without its memory traffic."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from image_classification.data.ahead import single_thread_pool

_BUFFERS = 8
"""More than a loader has on the way at once, with the usual prefetch; they are made as needed."""


class HostNormaliser:
    """Turns uint8 batches in the host's memory into float32.

    The whole batch at once makes three passes over memory that no cache holds, into pages the
    kernel has to hand out first; an image at a time, into memory used before, takes a tenth of
    the time and gives the same bits.

    mean_255, inverse_std_255: three values each, in units of 0..255.
    """

    def __init__(self, mean_255: torch.Tensor, inverse_std_255: torch.Tensor) -> None:
        self._mean_255 = mean_255.cpu().reshape(-1)
        self._inverse_std_255 = inverse_std_255.cpu().reshape(-1)
        self._buffers = BufferPool(_BUFFERS)
        self._thread: ThreadPoolExecutor | None = None
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return ``(images - mean) / std`` as float32, in the layout of ``images``.

        images: ``[N, 3, H, W]`` uint8 in the host's memory, contiguous or channels_last.
        """
        # In this thread torch would share out each image among all cores, which are busy with the
        # next batches: waiting for them takes longer than the work.
        if self._thread is None:
            self._thread = single_thread_pool(1)
        return self._thread.submit(self._normalise, images).result()

    def new_batch(
        self, shape: tuple[int, int, int, int], layout: torch.memory_format
    ) -> torch.Tensor:
        """Return memory for ``shape`` (N, 3, H, W) normalised images, float32 in ``layout``."""
        count, channels, height, width = shape
        if layout is torch.channels_last:
            whole = self._buffers.take((count, height, width, channels), np.float32)
            return whole.permute(0, 3, 1, 2)
        return self._buffers.take(shape, np.float32)

    def targets(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `image` is to fill of a `new_batch`, one for each of its images."""
        count, channels, _, width = batch.shape
        rows = batch.permute(0, 2, 3, 1)
        if not rows.is_contiguous():
            return batch.unbind()
        # A row of pixels at a time: three values would be too short an inner loop.
        return rows.view(count, -1, width * channels).unbind()

    def image(self, pixels: torch.Tensor, target: torch.Tensor) -> None:
        """Normalise ``pixels [3, H, W]`` uint8 into ``target``, one of `targets`."""
        if target.ndim == 2:
            target.copy_(pixels.permute(1, 2, 0).reshape(target.shape))
        else:
            target.copy_(pixels)
        mean, inverse_std = self._constants(target)
        target.sub_(mean).mul_(inverse_std)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        is_nhwc = images.is_contiguous(memory_format=torch.channels_last)
        count, channels, height, width = images.shape
        layout = torch.channels_last if is_nhwc else torch.contiguous_format
        batch = self.new_batch((count, channels, height, width), layout)
        for pixels, target in zip(images.unbind(), self.targets(batch), strict=True):
            self.image(pixels, target)
        return batch

    def _constants(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the inverse deviation in the shape that goes with ``target``."""
        size = target.shape[-1] if target.ndim == 2 else 0
        if size not in self._kept:
            pair = (self._mean_255, self._inverse_std_255)
            mean, inverse_std = (
                v.repeat(size // len(v)) if size else v.view(-1, 1, 1) for v in pair
            )
            self._kept[size] = (mean, inverse_std)
        return self._kept[size]


class BufferPool:
    """Memory for batches, handed out again once nothing refers to it any more.

    Fresh memory of a batch's size costs more than what is written to it: a page fault every 4 KB.
    Whoever keeps a tensor, or any view of it, keeps its memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: list[tuple[npt.NDArray[np.generic], weakref.ref[npt.NDArray[np.generic]]]] = []

    def take(self, shape: tuple[int, ...], dtype: type[np.generic]) -> torch.Tensor:
        """Return an uninitialised contiguous tensor."""
        for position, (base, user) in enumerate(self._known):
            if user() is None and base.shape == shape and base.dtype == dtype:
                del self._known[position]
                return self._lend(base)
        return self._lend(np.empty(shape, dtype))

    def _lend(self, base: npt.NDArray[np.generic]) -> torch.Tensor:
        # The tensor's storage holds this view until the last tensor on it is gone.
        view = base[...]
        self._known.append((base, weakref.ref(view)))
        del self._known[: -self._limit]
        return torch.from_numpy(view)
