"""From a uint8 batch in host memory to a normalized `Batch` on the device, one batch ahead."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from image_classification.core.types import Batch

MEMORY_FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

_MAX_BUFFERS = 8  # more than a loader holds at once with the usual prefetch

T = TypeVar("T")


class HostBatch(NamedTuple):
    """A micro-batch in host memory: a quarter of the bytes of float images.

    images: ``[N, 3, S, S]`` uint8, in the run's memory format. labels: ``[N]`` int64. valid:
    ``[N]`` bool. error: why the batch could not be made, or "". undecodable: (name, reason) of
    the train images whose rows `replace_rows` has filled.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    error: str
    undecodable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class StagedBatch:
    """A batch whose copy to the device is queued; ``ready`` is None if nothing is queued."""

    batch: Batch
    ready: torch.cuda.Event | None


def normalize(
    images: torch.Tensor, mean_255: torch.Tensor, inverse_std_255: torch.Tensor
) -> torch.Tensor:
    """Return ``(images - mean) / std`` as float32, in the layout of ``images``.

    images: ``[N, 3, H, W]`` uint8. mean_255, inverse_std_255: ``[1, 3, 1, 1]`` float32 on the same
    device, for values of 0..255.
    """
    return torch.sub(images, mean_255).mul_(inverse_std_255)


def replace_rows(images: torch.Tensor, labels: torch.Tensor, lost: Sequence[int]) -> None:
    """Fill each ``lost`` row of a micro-batch, in place, with the next row that was decoded.

    The first row follows the last. images: ``[N, ...]``; labels: ``[N]``. At least one row must
    not be lost. The result depends only on the micro-batch.
    """
    lost_rows = set(lost)
    if len(lost_rows) >= len(labels):
        raise ValueError("every row of the micro-batch is lost: none can replace the others")
    for row in sorted(lost_rows):
        source = (row + 1) % len(labels)
        while source in lost_rows:
            source = (source + 1) % len(labels)
        images[row] = images[source]
        labels[row] = labels[source]


class BufferPool:
    """Memory for batches, reused once no tensor refers to it.

    New memory of a batch's size costs more than writing to it: a page fault every 4 KB. A tensor,
    or any view of it, keeps its memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: list[tuple[npt.NDArray[np.generic], weakref.ref[npt.NDArray[np.generic]]]] = []

    def take(self, shape: tuple[int, ...], dtype: type[np.generic]) -> torch.Tensor:
        """Return an uninitialized contiguous tensor."""
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


class HostNormalizer:
    """Normalizes uint8 images in host memory, with the same bits as `normalize`.

    It works on one image at a time, which stays in the cache, and writes into reused memory: that
    takes a tenth of the time of `normalize` on a whole batch. NumPy uses no further threads.

    mean_255, inverse_std_255: three values each, for values of 0..255.
    """

    def __init__(self, mean_255: torch.Tensor, inverse_std_255: torch.Tensor) -> None:
        self._mean_255 = mean_255.numpy().reshape(-1)
        self._inverse_std_255 = inverse_std_255.numpy().reshape(-1)
        self._buffers = BufferPool(_MAX_BUFFERS)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return ``images [N, 3, H, W]`` uint8, contiguous or channels_last, as float32."""
        is_nhwc = images.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_nhwc else torch.contiguous_format
        batch = self.new_batch(tuple(images.shape), layout)
        for pixels, target in zip(images.unbind(), batch.unbind(), strict=True):
            self.image(pixels, target)
        return batch

    def new_batch(self, shape: tuple[int, ...], layout: torch.memory_format) -> torch.Tensor:
        """Return uninitialized float32 memory of ``shape`` (N, 3, H, W) in ``layout``."""
        if layout is torch.channels_last:
            count, channels, height, width = shape
            return self._buffers.take((count, height, width, channels), np.float32).permute(
                0, 3, 1, 2
            )
        return self._buffers.take(shape, np.float32)

    def image(self, pixels: torch.Tensor, target: torch.Tensor) -> None:
        """Normalize ``pixels [3, H, W]`` uint8 into ``target``, one image of a `new_batch`."""
        source, out = pixels.numpy(), target.numpy()
        shape = (-1, 1, 1)
        mean, inverse_std = self._mean_255.reshape(shape), self._inverse_std_255.reshape(shape)
        if not target.is_contiguous():
            # A row of pixels at a time: three channels would be too short an inner loop.
            width = out.shape[2]
            source, out = (a.transpose(1, 2, 0).reshape(-1, width * 3) for a in (source, out))
            mean, inverse_std = (np.tile(v.reshape(-1), width) for v in (mean, inverse_std))
        np.copyto(out, source)
        np.subtract(out, mean, out=out)
        np.multiply(out, inverse_std, out=out)


class DevicePrefetch:
    """Copies batches to the device and normalizes them, on its own stream if that is a GPU.

    on_host: normalizes if the device is the CPU, else None.
    """

    def __init__(
        self,
        device: torch.device,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.device = device
        shape = (1, 3, 1, 1)
        self._mean_255 = (torch.tensor(mean) * 255).reshape(shape).to(device)
        self._inverse_std_255 = (1 / (torch.tensor(std) * 255)).reshape(shape).to(device)
        self.on_host = (
            HostNormalizer(self._mean_255, self._inverse_std_255) if device.type == "cpu" else None
        )
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )

    def put(self, host: HostBatch) -> StagedBatch:
        """Queue the copy and the normalization of ``host``."""
        if self._stream is None:
            return StagedBatch(self._convert(host), None)
        with torch.cuda.stream(self._stream):
            batch = self._convert(host)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)  # type: ignore[no-untyped-call]
            return StagedBatch(batch, ready)

    def take(self, staged: StagedBatch) -> Batch:
        """Return the batch; the current stream waits for it, the host does not."""
        if staged.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(staged.ready)
            batch = staged.batch
            for tensor in (batch.images, batch.labels, batch.valid):
                # Without this, memory would be reused while the current stream still reads it.
                tensor.record_stream(current)
        return staged.batch

    def _convert(self, host: HostBatch) -> Batch:
        if self.on_host is not None:
            images = self.on_host(host.images)
        else:
            images = host.images.to(self.device, non_blocking=True)
            images = normalize(images, self._mean_255, self._inverse_std_255)
        return Batch(
            images=images,
            labels=host.labels.to(self.device, non_blocking=True),
            valid=host.valid.to(self.device, non_blocking=True),
        )


def look_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield ``items`` in order, drawing each ``depth`` items before it is yielded.

    With depth 1, the copy of the next batch is queued before the step on this one is.
    """
    drawn: deque[T] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > depth:
            yield drawn.popleft()
    yield from drawn
