"""Data backends ``dali-cpu`` and ``dali-gpu``: NVIDIA DALI decodes only what a crop needs.

On a GPU it resamples as well. On a CPU torchvision's kernel does that, in threads: it takes about
a third of the time of DALI's, and gives the ``pytorch`` backend's pixels.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from image_classification.core.errors import ConfigError, DataError
from image_classification.core.types import Batch
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.index import Index
from image_classification.data.loaders.dali_samples import Sample, SampleWork
from image_classification.data.loaders.device_prefetch import (
    MEMORY_FORMATS,
    DeviceFeed,
    HostBatch,
    StagedBatch,
    look_ahead,
    replace_rows,
)
from image_classification.data.loaders.protocol import LoaderSpec, Undecodable
from image_classification.data.loaders.workers import Ahead, single_thread_pool
from image_classification.data.order import PADDING, Indices, make_plan
from image_classification.data.tools.demo import resolve_data_path
from image_classification.data.transforms import (
    EvalTransform,
    TrainTransform,
    eval_transform,
    train_transform,
)

if TYPE_CHECKING:
    from image_classification.data.loaders.dali_decoder import DaliDecoder, Decoded

_IMAGES_PER_TASK = 16  # at most: handing over a task costs as much as one of its small steps
_TASKS_PER_THREAD = 4  # so that no thread waits long for the last one
_MIB = 2**20

Staged = tuple[StagedBatch, HostBatch]
"""A batch on its way to the device, and what it is made from, less the pixels."""


def open_cpu_loader(spec: LoaderSpec) -> DaliLoader:
    """Open one split; no GPU and no driver is needed.

    Raises:
        ConfigError: DALI is not installed; or sizes or ranges that contradict each other.
        DataError: see `image_classification.data.formats.folder.open_index`; or the train images do
            not fill one global batch.
    """
    return _open(spec, on_gpu=False)


def open_gpu_loader(spec: LoaderSpec) -> DaliLoader:
    """Open one split, decoded on the GPU that the run computes on.

    Raises:
        ConfigError: the run's device is no CUDA device; or as `open_cpu_loader`. DataError: as
            there.
    """
    if torch.device(spec.device).type != "cuda":
        raise ConfigError(
            f"data backend dali-gpu decodes on an NVIDIA GPU and this run computes on "
            f"{spec.device}: use --data-backend dali-cpu"
        )
    if spec.data.interpolation == "nearest":
        raise ConfigError(
            "data backend dali-gpu picks other pixels for data.interpolation nearest than the "
            "rest does: use bilinear or bicubic, or --data-backend dali-cpu"
        )
    return _open(spec, on_gpu=True)


def _open(spec: LoaderSpec, on_gpu: bool) -> DaliLoader:
    # Read when DALI first takes memory. A batch's crops are 10 to 30 MB, never twice of one size,
    # taken and given back by several threads: malloc keeps a rising share of that as fragments,
    # DALI's own pool uses it again. (The pool is for what is larger than the threshold.)
    os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"data backend {spec.data.backend} needs NVIDIA DALI, which is not there ({error}): "
            f"pip install 'image-classification[dali]', or use --data-backend pytorch"
        ) from error
    root = resolve_data_path(spec.data.path)
    index = open_index(root, spec.split, spec.num_classes, spec.data.format)
    return DaliLoader(spec, index, on_gpu)


class DaliLoader:
    """A `image_classification.data.loaders.protocol.Loader` over DALI.

    A thread runs ahead of the training thread; it and ``data.workers`` more read, resample and
    augment while DALI's own ``data.workers`` threads (or the GPU) decode the batch after. One epoch
    runs at a time: asking for another ends the one before.
    """

    def __init__(self, spec: LoaderSpec, index: Index, on_gpu: bool) -> None:
        data = spec.data
        self.num_images = len(index)
        self.num_quarantined = index.num_quarantined
        self.classes = index.classes
        self.undecodable = Undecodable(len(index), data.error_budget)
        self._is_train = spec.split == "train"
        self._plan = make_plan(spec, len(index))
        self.steps_per_epoch = self._plan.steps_per_epoch
        self._device = torch.device(spec.device)
        self._feed = DeviceFeed(self._device, data.mean, data.std)
        self._layout = MEMORY_FORMATS[spec.memory_format]
        self._prefetch = data.prefetch
        self._index = index
        transform: TrainTransform | EvalTransform
        transform = train_transform(data) if self._is_train else eval_transform(data)
        self._work = SampleWork(index, transform, spec.seed)
        threads = max(1, data.workers)
        self._decoder: DaliDecoder | None = _make_decoder(spec, transform, threads, on_gpu)
        self._pool = single_thread_pool(threads)
        share = spec.per_device_batch // (_TASKS_PER_THREAD * threads)
        self._per_task = min(max(1, share), _IMAGES_PER_TASK)
        self._stream = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if on_gpu
            else None
        )
        self._running: Ahead[Staged] | None = None
        atexit.register(self.close)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of ``epoch`` from ``start_step`` on (val: from that batch on).

        Raises:
            ValueError: a closed loader, or a position outside the epoch. DataError, while
            iterating: as `image_classification.data.loaders.protocol.Loader.epoch` has it.
        """
        if self._decoder is None:
            raise ValueError("the loader is closed")
        batches = self._plan.batches(epoch, start_step)
        self._stop_running()
        produced = self._produce(self._decoder, epoch, batches)
        self._running = running = Ahead(produced, self._prefetch)
        return self._run(running)

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``: the one that quarantine lists have."""
        return self._index.name(index)

    def close(self) -> None:
        """Stop the threads; may be called twice."""
        self._stop_running()
        self._pool.shutdown()
        self._decoder = None
        atexit.unregister(self.close)

    def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def _run(self, running: Ahead[Staged]) -> Iterator[Batch]:
        for staged, host in running:
            if host.error:
                raise DataError(host.error)
            self.undecodable.note(dict(host.undecodable))
            yield self._feed.take(staged)

    def _produce(
        self, decoder: DaliDecoder, epoch: int, batches: Indices
    ) -> Generator[Staged, None, None]:
        """Make the micro-batches; while one is finished, DALI decodes the next.

        And the one after that is read and handed to it. Runs in the thread that is ahead, which
        starts no kernel of torch's itself: see `single_thread_pool`.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # else this thread pins memory through GPU 0
        while decoder.num_running:  # an epoch was broken off
            decoder.collect()
        decoding: list[Sample] | None = None
        for ready in look_ahead((self._prepare(epoch, batch) for batch in batches), 1):
            samples = ready()
            decoder.submit([self._work.cut(s) for s in samples if s.content is not None])
            if decoding is not None:
                yield self._stage(decoding, decoder.collect())
            decoding = samples
        if decoding is not None:
            yield self._stage(decoding, decoder.collect())

    def _prepare(self, epoch: int, indices: Indices) -> Callable[[], list[Sample]]:
        """Start reading one micro-batch; the result waits for it."""
        samples = [Sample(index, row) for row, index in enumerate(indices.tolist())]
        wanted = [sample for sample in samples if sample.index != PADDING]
        tasks = [
            self._pool.submit(self._work.prepare, epoch, some)
            for some in _chunks(wanted, self._per_task)
        ]

        def wait() -> list[Sample]:
            for task in tasks:
                task.result()
            return samples

        return wait

    def _stage(self, samples: list[Sample], decoded: Decoded) -> Staged:
        parts: list[torch.Tensor | None] = [None] * len(samples)
        submitted = [sample for sample in samples if sample.content is not None]
        for sample, part in zip(submitted, decoded.images, strict=True):
            parts[sample.row] = part
            if part is None:
                self._pool.submit(self._work.take_over, sample).result()
        if self._stream is None:
            images = self._finish_on_host(samples, parts)
        else:
            with torch.cuda.stream(self._stream):
                images = self._finish_on_gpu(samples, parts, decoded.together)
            self._stream.synchronize()  # what DALI decoded into is its own again after this
        host = self._assemble(samples, images)
        if self._feed.on_host is not None:  # normalised already, each image while in the cache
            return StagedBatch(Batch(images, host.labels, host.valid), None), host
        staged = self._pool.submit(self._feed.put, host).result()
        if staged.ready is not None:
            staged.ready.synchronize()
        return staged, host._replace(images=images[:0])

    def _finish_on_host(
        self, samples: list[Sample], parts: list[torch.Tensor | None]
    ) -> torch.Tensor:
        images = self._new_batch(len(samples))
        on_host = self._feed.on_host
        targets = images.unbind() if on_host is None else on_host.targets(images)

        def finish(some: Sequence[Sample]) -> None:
            for sample in some:
                if sample.lost:
                    continue
                if sample.index == PADDING:
                    image = torch.zeros(images.shape[1:], dtype=torch.uint8)
                else:
                    image = self._work.finish(sample, parts[sample.row])
                if on_host is None:
                    targets[sample.row].copy_(image)
                else:
                    on_host.image(image, targets[sample.row])

        for task in [self._pool.submit(finish, s) for s in _chunks(samples, self._per_task)]:
            task.result()
        return images

    def _finish_on_gpu(
        self,
        samples: list[Sample],
        parts: list[torch.Tensor | None],
        together: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the batch on the GPU: DALI's own memory where nothing is left to do to it."""
        if together is None or len(together) < len(samples):
            side = self._work.side
            together = torch.zeros(
                (len(samples), side, side, 3), dtype=torch.uint8, device=self._device
            )
            for sample, part in zip(samples, parts, strict=True):
                if part is not None:
                    together[sample.row] = part
                elif sample.decoded is not None:
                    finished = self._pool.submit(self._work.finish, sample, None).result()
                    together[sample.row] = finished.permute(1, 2, 0).to(self._device)
        images = together.permute(0, 3, 1, 2)
        for sample, part in zip(samples, parts, strict=True):
            if part is not None:
                image = images[sample.row]
                augmented = self._work.augmented(sample, image)
                if augmented is not image:
                    images[sample.row] = augmented
        return images.contiguous(memory_format=self._layout)

    def _new_batch(self, count: int) -> torch.Tensor:
        """Return memory for ``[count, 3, S, S]`` on the host, in the run's layout.

        float32 where that is where the images stay, else uint8.
        """
        side = self._work.side
        shape = (count, 3, side, side)
        if self._feed.on_host is not None:
            return self._feed.on_host.new_batch(shape, self._layout)
        # torch keeps pinned memory, and knows when a copy out of it is over.
        is_pinned = self._device.type == "cuda"
        return torch.empty(
            shape, dtype=torch.uint8, memory_format=self._layout, pin_memory=is_pinned
        )

    def _assemble(self, samples: list[Sample], images: torch.Tensor) -> HostBatch:
        """Add labels, and fill the rows of lost images as every backend does."""
        wanted = np.array([sample.index for sample in samples], dtype=np.int64)
        valid = wanted != PADDING
        labels = torch.from_numpy(np.where(valid, self._index.labels[wanted.clip(min=0)], 0))
        known = torch.from_numpy(valid)
        lost = [sample for sample in samples if sample.lost]
        if not lost:
            return HostBatch(images, labels, known, "")
        if not self._is_train:
            return HostBatch(images, labels, known, lost[0].lost)
        if len(lost) == len(samples):
            reason = f"no image of a micro-batch of {len(lost)} could be read: {lost[0].lost}"
            return HostBatch(images, labels, known, reason)
        rows = [sample.row for sample in lost]
        self._pool.submit(replace_rows, images, labels, rows).result()
        named = tuple((self._index.name(sample.index), sample.lost) for sample in lost)
        return HostBatch(images, labels, known, "", named)


def _make_decoder(
    spec: LoaderSpec, transform: TrainTransform | EvalTransform, threads: int, on_gpu: bool
) -> DaliDecoder:
    from image_classification.data.loaders.dali_decoder import DaliDecoder, GpuDecoding, Resample

    if not on_gpu:
        return DaliDecoder(spec.per_device_batch, threads, None, None)
    side = transform.image_size if isinstance(transform, TrainTransform) else transform.crop
    return DaliDecoder(
        spec.per_device_batch,
        threads,
        Resample(side, transform.interpolation, transform.antialias),
        GpuDecoding(
            device_index=torch.device(spec.device).index or 0,
            hw_load=spec.data.hw_decoder_load,
            memory_padding_bytes=spec.data.device_memory_padding_mib * _MIB,
        ),
    )


def _chunks(samples: list[Sample], size: int) -> list[list[Sample]]:
    return [samples[at : at + size] for at in range(0, len(samples), size)]
