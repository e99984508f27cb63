"""Normalising on the host: the arithmetic of `feed.normalise`, without its memory traffic.

From a worker's uint8 batch to a normalised `Batch` on the device.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from image_classification.core.types import Batch
from image_classification.data.loaders.workers import single_thread_pool

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


T = TypeVar("T")

MEMORY_FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


class HostBatch(NamedTuple):
    """What a worker sends: a quarter of the bytes of float images, normalised on the device.

    images: ``[N, 3, S, S]`` uint8, already in the run's memory format. labels: ``[N]`` int64.
    valid: ``[N]`` bool. error: why the batch could not be made; "" where it could. undecodable:
    (name, reason) of the train images whose rows others have taken, see `replace_rows`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    error: str
    undecodable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class StagedBatch:
    """A batch whose copy to the device is queued; ``ready`` is None where nothing is queued."""

    batch: Batch
    ready: torch.cuda.Event | None


def normalise(
    images: torch.Tensor, mean_255: torch.Tensor, inverse_std_255: torch.Tensor
) -> torch.Tensor:
    """Return ``(images - mean) / std`` as float32, in the layout of ``images``.

    images: ``[N, 3, H, W]`` uint8. The other two: ``[1, 3, 1, 1]`` float32 on the same device, in
    units of 0..255.
    """
    return torch.sub(images, mean_255).mul_(inverse_std_255)


def replace_rows(images: torch.Tensor, labels: torch.Tensor, lost: Sequence[int]) -> None:
    """Fill the ``lost`` rows of a micro-batch, in place, with the next row that was decoded.

    The row after the last is the first. images: ``[N, ...]``; labels: ``[N]``. At least one row
    must not be lost. What a row becomes depends on the micro-batch alone.
    """
    gone = set(lost)
    if len(gone) >= len(labels):
        raise ValueError("no row is left to take the place of the lost ones")
    for row in sorted(gone):
        heir = (row + 1) % len(labels)
        while heir in gone:
            heir = (heir + 1) % len(labels)
        images[row] = images[heir]
        labels[row] = labels[heir]


class DeviceFeed:
    """Copies and normalises batches, on a stream of its own where the device is a GPU.

    on_host: what normalises where the device is the CPU, else None.
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
            HostNormaliser(self._mean_255, self._inverse_std_255) if device.type == "cpu" else None
        )
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )

    def put(self, host: HostBatch) -> StagedBatch:
        """Queue the copy and the normalisation of ``host``."""
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
                tensor.record_stream(current)  # else its memory is reused while still read
        return staged.batch

    def _convert(self, host: HostBatch) -> Batch:
        if self.on_host is not None:
            images = self.on_host(host.images)
        else:
            images = host.images.to(self.device, non_blocking=True)
            images = normalise(images, self._mean_255, self._inverse_std_255)
        return Batch(
            images=images,
            labels=host.labels.to(self.device, non_blocking=True),
            valid=host.valid.to(self.device, non_blocking=True),
        )


def look_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield ``items`` in order, always having drawn ``depth`` more than were yielded.

    With depth 1, the copy of the next batch is queued before the step on this one is.
    """
    drawn: deque[T] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > depth:
            yield drawn.popleft()
    yield from drawn
