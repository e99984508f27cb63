"""From a worker's uint8 batch to a normalised `Batch` on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from image_classification.core.types import Batch
from image_classification.data.normalise import HostNormaliser

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
