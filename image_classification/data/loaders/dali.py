"""Data backends ``dali-cpu`` and ``dali-gpu``: NVIDIA DALI decodes only the crop of each image.

``dali-gpu`` resizes with DALI, too. ``dali-cpu`` resizes with torchvision's kernel in threads: that
takes about a third of the time of DALI's, and gives the ``pytorch`` backend's pixels.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from image_classification.core.errors import ConfigError, DataError
from image_classification.core.types import Batch
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.index import Index
from image_classification.data.loaders.dali_decode import (
    DaliDecoder,
    Decoded,
    GpuDecoding,
    HostSteps,
    Resample,
    Sample,
)
from image_classification.data.loaders.device_prefetch import (
    MEMORY_FORMATS,
    DevicePrefetch,
    HostBatch,
    StagedBatch,
    look_ahead,
    replace_rows,
)
from image_classification.data.loaders.protocol import LoaderSpec, UndecodableImages
from image_classification.data.order import PADDING, Indices, batch_order
from image_classification.data.tools.demo import resolve_data_path
from image_classification.data.transforms import image_transform

_MAX_IMAGES_PER_TASK = 16  # handing over a task takes as long as a small step of one image
_TASKS_PER_THREAD = 4  # so that no thread waits long for the last task
_STOP_POLL_S = 0.05
_MIB = 2**20

Staged = tuple[StagedBatch, HostBatch]
"""A batch queued for the device, and the `HostBatch` it is made from, without the pixels."""

T = TypeVar("T")


def open_cpu_loader(spec: LoaderSpec) -> DaliLoader:
    """Open one split, decoded on the CPU; no GPU or driver is needed.

    Raises:
        ConfigError: DALI is not installed; or sizes or ranges that contradict each other.
        DataError: see `image_classification.data.formats.folder.open_index`; or the train images do
            not fill one global batch.
    """
    return _open(spec, on_gpu=False)


def open_gpu_loader(spec: LoaderSpec) -> DaliLoader:
    """Open one split, decoded on the run's GPU.

    Raises:
        ConfigError: the run's device is no CUDA device; or as for `open_cpu_loader`. DataError: as
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
            "other backends: use bilinear or bicubic, or --data-backend dali-cpu"
        )
    return _open(spec, on_gpu=True)


def _open(spec: LoaderSpec, on_gpu: bool) -> DaliLoader:
    # DALI reads this when it first allocates memory. The crops of a batch are 10 to 30 MB, of a
    # different size each time, and several threads allocate and free them: malloc fragments, while
    # DALI's own pool, used above this threshold, reuses the memory.
    os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"data backend {spec.data.backend} needs NVIDIA DALI, which cannot be imported "
            f"({error}): pip install 'image-classification[dali]', or use --data-backend pytorch"
        ) from error
    root = resolve_data_path(spec.data.path)
    index = open_index(root, spec.split, spec.num_classes, spec.data.format)
    return DaliLoader(spec, index, on_gpu)


class DaliLoader:
    """A `image_classification.data.loaders.protocol.Loader` over DALI.

    A background thread makes batches ahead of the training thread. It and ``data.workers`` pool
    threads read, resize and augment one batch, while DALI's own ``data.workers`` threads (or the
    GPU) decode the next.
    """

    def __init__(self, spec: LoaderSpec, index: Index, on_gpu: bool) -> None:
        data = spec.data
        self.num_images = len(index)
        self.num_quarantined = index.num_quarantined
        self.classes = index.classes
        self.undecodable = UndecodableImages(len(index), data.error_budget)
        self._is_train = spec.split == "train"
        self._order = batch_order(spec, len(index))
        self.steps_per_epoch = self._order.steps_per_epoch
        self._device = torch.device(spec.device)
        self._prefetch = DevicePrefetch(self._device, data.mean, data.std)
        self._layout = MEMORY_FORMATS[spec.memory_format]
        self._depth = data.prefetch
        self._index = index
        transform = image_transform(data, spec.split)
        self._side = transform.side
        self._steps = HostSteps(index, transform, spec.seed)
        threads = max(1, data.workers)
        resample, gpu = None, None
        if on_gpu:
            resample = Resample(self._side, data.interpolation, data.antialias)
            gpu = GpuDecoding(
                device_index=self._device.index or 0,
                hw_load=data.hw_decoder_load,
                memory_padding_bytes=data.device_memory_padding_mib * _MIB,
            )
        self._decoder: DaliDecoder | None = DaliDecoder(
            spec.per_device_batch, threads, resample, gpu
        )
        self._pool = ThreadPoolExecutor(threads, "images", initializer=use_one_torch_thread)
        share = spec.per_device_batch // (_TASKS_PER_THREAD * threads)
        self._per_task = min(max(1, share), _MAX_IMAGES_PER_TASK)
        self._stream = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if on_gpu
            else None
        )
        self._running: BackgroundIterator[Staged] | None = None
        atexit.register(self.close)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """See `image_classification.data.loaders.protocol.Loader.epoch`."""
        if self._decoder is None:
            raise ValueError("the loader is closed")
        batches = self._order.batches(epoch, start_step)
        self._stop_running()
        produced = self._produce(self._decoder, epoch, batches)
        self._running = running = BackgroundIterator(produced, self._depth)
        return self._run(running)

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``, as in quarantine lists."""
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

    def _run(self, running: BackgroundIterator[Staged]) -> Iterator[Batch]:
        for staged, host in running:
            if host.error:
                raise DataError(host.error)
            self.undecodable.note(dict(host.undecodable))
            yield self._prefetch.take(staged)

    def _produce(
        self, decoder: DaliDecoder, epoch: int, batches: Indices
    ) -> Generator[Staged, None, None]:
        """Make the micro-batches, in the background thread.

        While one is finished, DALI decodes the next, and the pool reads the one after that.
        """
        use_one_torch_thread()
        if self._device.type == "cuda":
            # The current device is per thread; on another one this would use memory of GPU 0.
            torch.cuda.set_device(self._device)
        while decoder.num_running:  # left from an epoch that was broken off
            decoder.collect()
        decoding: list[Sample] | None = None
        for samples, reads in look_ahead((self._read(epoch, batch) for batch in batches), 1):
            for read in reads:
                read.result()
            decoder.submit([self._steps.cut(s) for s in samples if s.content is not None])
            if decoding is not None:
                yield self._stage(decoding, decoder.collect())
            decoding = samples
        if decoding is not None:
            yield self._stage(decoding, decoder.collect())

    def _read(self, epoch: int, indices: Indices) -> tuple[list[Sample], list[Future[None]]]:
        """Start to read one micro-batch; return its samples, and the tasks to wait for."""
        samples = [Sample(index, row) for row, index in enumerate(indices.tolist())]
        images = [sample for sample in samples if sample.index != PADDING]
        prepare = self._steps.prepare
        return samples, [self._pool.submit(prepare, epoch, s) for s in self._tasks(images)]

    def _stage(self, samples: list[Sample], decoded: Decoded) -> Staged:
        parts: list[torch.Tensor | None] = [None] * len(samples)
        submitted = [sample for sample in samples if sample.content is not None]
        for sample, part in zip(submitted, decoded.images, strict=True):
            parts[sample.row] = part
            if part is None:
                self._steps.decode(sample)
        if self._stream is None:
            host = self._assemble(samples, self._finish_on_host(samples, parts))
        else:
            with torch.cuda.stream(self._stream):
                images = self._finish_on_gpu(samples, parts, decoded.together)
                host = self._assemble(samples, images)
            self._stream.synchronize()  # DALI reuses its memory after this
        if self._prefetch.on_host is not None:  # `_finish_on_host` has normalized the images
            return StagedBatch(Batch(host.images, host.labels, host.valid), None), host
        staged = self._prefetch.put(host)
        if staged.ready is not None:
            staged.ready.synchronize()
        return staged, host._replace(images=torch.empty(0))

    def _finish_on_host(
        self, samples: list[Sample], parts: list[torch.Tensor | None]
    ) -> torch.Tensor:
        """Return ``[N, 3, S, S]``: normalized float32 if the device is the CPU, else uint8."""
        images = self._new_batch(len(samples))
        on_host = self._prefetch.on_host
        targets = images.unbind()

        def finish(some: Sequence[Sample]) -> None:
            for sample in some:
                if sample.error:
                    continue
                if sample.index == PADDING:
                    image = torch.zeros(images.shape[1:], dtype=torch.uint8)
                else:
                    image = self._steps.finish(sample, parts[sample.row])
                if on_host is None:
                    targets[sample.row].copy_(image)
                else:
                    on_host.image(image, targets[sample.row])

        for task in [self._pool.submit(finish, some) for some in self._tasks(samples)]:
            task.result()
        return images

    def _finish_on_gpu(
        self,
        samples: list[Sample],
        parts: list[torch.Tensor | None],
        together: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return ``[N, 3, S, S]`` uint8 on the GPU: DALI's own memory if nothing is left to do."""
        if together is None or len(together) < len(samples):
            shape = (len(samples), self._side, self._side, 3)
            together = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            for sample, part in zip(samples, parts, strict=True):
                if part is not None:
                    together[sample.row] = part
                elif sample.decoded is not None:
                    finished = self._steps.finish(sample, None)
                    together[sample.row] = finished.permute(1, 2, 0).to(self._device)
        images = together.permute(0, 3, 1, 2)
        for sample, part in zip(samples, parts, strict=True):
            if part is not None:
                image = images[sample.row]
                augmented = self._steps.augmented(sample, image)
                if augmented is not image:
                    images[sample.row] = augmented
        return images.contiguous(memory_format=self._layout)

    def _new_batch(self, count: int) -> torch.Tensor:
        """Return host memory for `_finish_on_host`, in the run's layout."""
        shape = (count, 3, self._side, self._side)
        if self._prefetch.on_host is not None:
            return self._prefetch.on_host.new_batch(shape, self._layout)
        # torch reuses pinned memory, and only after copies from it are done.
        is_pinned = self._device.type == "cuda"
        return torch.empty(
            shape, dtype=torch.uint8, memory_format=self._layout, pin_memory=is_pinned
        )

    def _assemble(self, samples: list[Sample], images: torch.Tensor) -> HostBatch:
        """Add the labels, and replace the rows of images that could not be decoded."""
        indices = np.array([sample.index for sample in samples], dtype=np.int64)
        valid = indices != PADDING
        labels = torch.from_numpy(np.where(valid, self._index.labels[indices.clip(min=0)], 0))
        batch = HostBatch(images, labels, torch.from_numpy(valid), "")
        lost = [sample for sample in samples if sample.error]
        if not lost:
            return batch
        if not self._is_train:
            return batch._replace(error=lost[0].error)
        if len(lost) == len(samples):
            reason = f"no image of a micro-batch of {len(lost)} could be read: {lost[0].error}"
            return batch._replace(error=reason)
        replace_rows(images, labels, [sample.row for sample in lost])
        named = tuple((self._index.name(sample.index), sample.error) for sample in lost)
        return batch._replace(undecodable=named)

    def _tasks(self, samples: list[Sample]) -> list[list[Sample]]:
        size = self._per_task
        return [samples[at : at + size] for at in range(0, len(samples), size)]


_torch_threads_lock = threading.Lock()


def use_one_torch_thread() -> None:
    """Let torch's operations in the calling thread, a new one, use no further threads.

    Otherwise each would use as many as there are cores. torch keeps that number per thread, and
    once per process for threads to come. Setting it changes both, so another thread restores the
    process's.
    """
    with _torch_threads_lock:
        of_process = torch.get_num_threads()  # also keeps torch from setting it here later on
        torch.set_num_threads(1)
        restore = threading.Thread(target=torch.set_num_threads, args=(of_process,))
        restore.start()
        restore.join()


@dataclass(frozen=True)
class _End:
    """Marks the end of the items; ``error`` is what they raised, if anything."""

    error: BaseException | None


class BackgroundIterator(Generic[T]):
    """Iterates over ``items``, which a thread of its own draws up to ``depth`` items ahead.

    What ``items`` raises is raised after the items before it. The thread is a daemon: a program
    that ends without `stop` does not wait for it.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._is_stopping = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> BackgroundIterator[T]:
        return self

    def __next__(self) -> T:
        if self._is_over:
            raise StopIteration
        item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self._is_over = True
        self._thread.join()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def stop(self) -> None:
        """End the thread and discard its items; may be called twice."""
        self._is_over = True
        self._is_stopping.set()
        while self._thread.is_alive():
            while not self._queue.empty():  # the thread may be waiting for a free place
                self._queue.get()
            self._thread.join(_STOP_POLL_S)

    def _run(self, items: Generator[T, None, None]) -> None:
        error: BaseException | None = None
        try:
            try:
                for item in items:
                    self._queue.put(item)
                    if self._is_stopping.is_set():
                        break
            finally:
                items.close()
        except BaseException as raised:
            error = raised
        self._queue.put(_End(error))
