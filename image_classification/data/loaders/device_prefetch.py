"""From a uint8 batch in host memory to a normalized `Batch` on the device, one batch ahead."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from image_classification.core.errors import DataError
from image_classification.core.types import Batch
from image_classification.data.formats.index import Index
from image_classification.data.order import PADDING, Indices

MEMORY_FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

_MAX_BUFFERS = 8  # more than a loader holds at once with the usual prefetch
_TILE_ROWS = 8  # rows of an NHWC image normalized at once: few enough to stay in the L1 cache

T = TypeVar("T")
Floats = npt.NDArray[np.float32]


class HostBatch(NamedTuple):
    """A micro-batch in host memory: a quarter of the bytes of float images.

    images: ``[N, 3, S, S]`` uint8, in the run's memory format. labels: ``[N]`` int64. valid:
    ``[N]`` bool. error: why the batch could not be made, or "". undecodable: (name, reason) of
    the train images whose rows `host_batch` has filled.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    error: str = ""
    undecodable: tuple[tuple[str, str], ...] = ()


def host_batch(
    images: torch.Tensor, indices: Indices, index: Index, lost: Mapping[int, str]
) -> HostBatch:
    """Add labels to ``images [N, ...]``, and replace the images that could not be decoded.

    indices: ``[N]`` int64, positions in ``index`` or `PADDING`. lost: row -> reason. Each lost row
    is filled in place with the next row that was decoded; the first row follows the last. The
    result depends only on the micro-batch.

    Raises:
        DataError: every row is lost.
    """
    valid = indices != PADDING
    labels = torch.from_numpy(np.where(valid, index.labels[indices.clip(min=0)], 0))
    count = len(indices)
    if len(lost) == count:
        reason = lost[0]
        raise DataError(f"no image of a micro-batch of {count} could be read: {reason}")
    for row in sorted(lost):
        source = next(r % count for r in range(row + 1, row + count) if r % count not in lost)
        images[row], labels[row] = images[source], labels[source]
    undecodable = tuple((index.name(int(indices[row])), lost[row]) for row in sorted(lost))
    return HostBatch(images, labels, torch.from_numpy(valid), undecodable=undecodable)


def normalize(
    images: torch.Tensor, mean_255: torch.Tensor, inverse_std_255: torch.Tensor
) -> torch.Tensor:
    """Return ``(images - mean) / std`` as float32, in the layout of ``images``.

    images: ``[N, 3, H, W]`` uint8. mean_255, inverse_std_255: ``[1, 3, 1, 1]`` float32 on the same
    device, for values of 0..255.
    """
    return torch.sub(images, mean_255).mul_(inverse_std_255)


def normalization(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the constants of `normalize` for ``mean`` and ``std`` of images in 0..1."""
    shape = (1, 3, 1, 1)
    mean_255 = (torch.tensor(mean) * 255).reshape(shape)
    inverse_std_255 = (1 / (torch.tensor(std) * 255)).reshape(shape)
    return mean_255.to(device), inverse_std_255.to(device)


class BufferPool:
    """Memory for batches, reused once no tensor refers to it.

    New memory of a batch's size costs more than writing to it: a page fault every 4 KB. A tensor,
    or any view of it, keeps its memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: list[tuple[Floats, weakref.ref[Floats]]] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return an uninitialized contiguous float32 tensor."""
        free = (i for i, (a, user) in enumerate(self._known) if user() is None and a.shape == shape)
        position = next(free, None)
        base = np.empty(shape, np.float32) if position is None else self._known.pop(position)[0]
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
        self._constants = [v.numpy().reshape(3, 1, 1) for v in (mean_255, inverse_std_255)]
        self._tiled: dict[int, list[Floats]] = {}
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
            return self._buffers.take((count, height, width, channels)).permute(0, 3, 1, 2)
        return self._buffers.take(shape)

    def image(self, pixels: torch.Tensor, target: torch.Tensor) -> None:
        """Normalize ``pixels [3, H, W]`` uint8 into ``target``, one image of a `new_batch`."""
        source, out = pixels.numpy(), target.numpy()
        mean, inverse_std = self._constants
        if not target.is_contiguous():
            # Several rows of pixels at a time: three channels would be too short an inner loop.
            _, height, width = out.shape
            length = math.gcd(height, _TILE_ROWS) * width * 3
            source, out = (a.transpose(1, 2, 0).reshape(-1, length) for a in (source, out))
            if length not in self._tiled:
                self._tiled[length] = [np.tile(v.ravel(), length // 3) for v in self._constants]
            mean, inverse_std = self._tiled[length]
        np.copyto(out, source)
        np.subtract(out, mean, out=out)
        np.multiply(out, inverse_std, out=out)


Staged = tuple[Batch, torch.cuda.Event | None]
"""A batch whose copy to the device is queued; the event is None if nothing is queued."""


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
        self._constants = normalization(mean, std, device)
        self.on_host = HostNormalizer(*self._constants) if device.type == "cpu" else None
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )

    def put(self, host: HostBatch) -> Staged:
        """Queue the copy and the normalization of ``host``."""
        if self._stream is None:
            return self._convert(host), None
        with torch.cuda.stream(self._stream):
            batch = self._convert(host)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)  # type: ignore[no-untyped-call]
            return batch, ready

    def take(self, staged: Staged) -> Batch:
        """Return the batch; the current stream waits for it, the host does not."""
        batch, ready = staged
        if ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for tensor in (batch.images, batch.labels, batch.valid):
                # Without this, memory would be reused while the current stream still reads it.
                tensor.record_stream(current)
        return batch

    def _convert(self, host: HostBatch) -> Batch:
        if self.on_host is not None:
            images = self.on_host(host.images)
        else:
            images = host.images.to(self.device, non_blocking=True)
            images = normalize(images, *self._constants)
        labels, valid = (t.to(self.device, non_blocking=True) for t in (host.labels, host.valid))
        return Batch(images, labels, valid)


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
