"""Data backends ``dali-cpu`` and ``dali-gpu``: NVIDIA DALI decodes only the crop of each image.

``dali-gpu`` resizes with DALI, too. ``dali-cpu`` resizes with torchvision's kernel in threads: that
takes about a third of the time of DALI's, and gives the ``pytorch`` backend's pixels.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from image_classification.core.errors import ConfigError, DataError
from image_classification.core.types import Batch
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.split import SplitRule
from image_classification.data.loaders import LoaderSpec, UndecodableImages
from image_classification.data.loaders.dali_decode import DaliDecoder, Decoded, HostSteps, Sample
from image_classification.data.loaders.device_prefetch import (
    MEMORY_FORMATS,
    DevicePrefetch,
    Staged,
    host_batch,
    look_ahead,
)
from image_classification.data.order import PADDING, Indices
from image_classification.data.tools.demo import resolve_data_path
from image_classification.data.transforms import check_transform

_MAX_IMAGES_PER_TASK = 16  # handing over a task takes as long as a small step of one image
_TASKS_PER_THREAD = 4  # so that no thread waits long for the last task

Produced = tuple[Staged, dict[str, str]]
"""A batch queued for the device, and the images that it lacks: name -> reason."""


class DaliLoader:
    """A `Loader` over DALI.

    A background thread makes batches ahead of the training thread. It and ``data.workers`` pool
    threads read, resize and augment one batch, while DALI's own ``data.workers`` threads (or the
    run's GPU) decode the next. ``dali-cpu`` needs no GPU or driver.

    Raises:
        ConfigError: DALI is not installed; dali-gpu without a CUDA device, or with interpolation
            nearest; or sizes or ranges that contradict each other. DataError: see `open_index`; or
            the train images do not fill one global batch.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        data = spec.data
        on_gpu = data.backend == "dali-gpu"
        if on_gpu:
            _check_gpu(spec)
        # DALI reads this when it first allocates memory. The crops of a batch are 10 to 30 MB, of
        # a different size each time, and several threads allocate and free them: malloc fragments,
        # while DALI's own pool, used above this threshold, reuses the memory.
        os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"data backend {data.backend} needs NVIDIA DALI, which cannot be imported "
                f"({error}): pip install 'imagenet-by-name[dali]', or use --data-backend "
                f"pytorch"
            ) from error
        check_transform(data, spec.split)
        root = resolve_data_path(data.path)
        self._index = index = open_index(
            root,
            spec.split,
            spec.num_classes,
            data.format,
            SplitRule.of(data),
            spec.classes,
        )
        self.num_images = len(index)
        self.notes = index.notes
        self.num_quarantined = index.num_quarantined
        self.classes, self.class_names = index.classes, index.class_names
        self.undecodable = UndecodableImages(len(index), data.error_budget)
        self._is_train = spec.split == "train"
        self._order = spec.batch_order(len(index))
        self.steps_per_epoch = self._order.steps_per_epoch
        self._device = torch.device(spec.device)
        self._prefetch = DevicePrefetch(self._device, data.mean, data.std)
        self._layout = MEMORY_FORMATS[spec.memory_format]
        self._depth = data.prefetch
        self._side = data.image_size
        self._steps = HostSteps(index, spec)
        device_index = (self._device.index or 0) if on_gpu else None
        self._decoder: DaliDecoder | None = DaliDecoder(
            data, spec.per_device_batch, on_gpu, device_index
        )
        threads = max(1, data.workers)
        self._pool = ThreadPoolExecutor(threads, "images", initializer=use_one_torch_thread)
        share = spec.per_device_batch // (_TASKS_PER_THREAD * threads)
        self._per_task = min(max(1, share), _MAX_IMAGES_PER_TASK)
        self._stream = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if on_gpu
            else None
        )
        self._running: Generator[Batch, None, None] | None = None
        atexit.register(self.close)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """See `Loader.epoch`."""
        if self._decoder is None:
            raise ValueError("the loader is closed")
        batches = self._order.batches(epoch, start_step)
        self._stop_running()
        self._running = self._run(self._produce(self._decoder, epoch, batches), len(batches))
        return self._running

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``, as in quarantine lists."""
        return self._index.name(index)

    def read_sample(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return the encoded content of image ``index``; see `Loader.read_sample`."""
        return self._index.read(index)

    def close(self) -> None:
        """Stop the threads; may be called twice."""
        self._stop_running()
        self._pool.shutdown()
        self._decoder = None
        atexit.unregister(self.close)

    def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _run(self, produced: Iterator[Produced], num_batches: int) -> Generator[Batch, None, None]:
        producer = ThreadPoolExecutor(1, "batches")
        futures = (producer.submit(next, produced) for _ in range(num_batches))
        try:
            # `data.prefetch` batches wait while the thread makes the next one.
            for future in look_ahead(futures, self._depth + 1):
                staged, undecodable = future.result()
                self.undecodable.note(undecodable)
                yield self._prefetch.take(staged)
        finally:
            producer.shutdown(cancel_futures=True)

    def _produce(self, decoder: DaliDecoder, epoch: int, batches: Indices) -> Iterator[Produced]:
        """Make the micro-batches, in the background thread.

        While one is finished, DALI decodes the next, and the pool reads the one after that.
        """
        use_one_torch_thread()
        if self._device.type == "cuda":
            # The current device is per thread; on another one this would use memory of GPU 0.
            torch.cuda.set_device(self._device)
        while decoder.num_running:  # left over from an interrupted epoch
            decoder.collect()
        decoding: list[Sample] | None = None
        for samples, reads in look_ahead((self._read(epoch, batch) for batch in batches), 1):
            for read in reads:
                read.result()
            decoder.submit([sample for sample in samples if sample.content is not None])
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

    def _stage(self, samples: list[Sample], decoded: Decoded) -> Produced:
        submitted = [sample for sample in samples if sample.content is not None]
        for sample, part in zip(submitted, decoded.images, strict=True):
            sample.part = part
            if part is None:
                self._steps.decode(sample)
        indices = np.array([sample.index for sample in samples], dtype=np.int64)
        lost = {sample.row: sample.error for sample in samples if sample.error}
        if lost and not self._is_train:
            raise DataError(lost[min(lost)])
        if self._stream is None:
            host = host_batch(self._finish_on_host(samples), indices, self._index, lost)
        else:
            with torch.cuda.stream(self._stream):
                images = self._finish_on_gpu(samples, decoded.together)
                host = host_batch(images, indices, self._index, lost)
            self._stream.synchronize()  # DALI reuses its memory after this
        undecodable = dict(host.undecodable)
        if self._prefetch.on_host is not None:  # `_finish_on_host` has normalized the images
            return (Batch(host.images, host.labels, host.valid), None), undecodable
        batch, ready = self._prefetch.put(host)
        if ready is not None:
            ready.synchronize()
        return (batch, ready), undecodable

    def _finish_on_host(self, samples: list[Sample]) -> torch.Tensor:
        """Return ``[N, 3, S, S]``: normalized float32 if the device is the CPU, else uint8."""
        shape, on_host = (len(samples), 3, self._side, self._side), self._prefetch.on_host
        if on_host is not None:
            images = on_host.new_batch(shape, self._layout)
        else:
            # torch reuses pinned memory, and only after copies from it are done.
            is_pinned = self._device.type == "cuda"
            images = torch.empty(
                shape, dtype=torch.uint8, memory_format=self._layout, pin_memory=is_pinned
            )
        targets = images.unbind()

        def finish(some: Sequence[Sample]) -> None:
            for sample in some:
                if sample.error:
                    continue
                if sample.index == PADDING:
                    image = torch.zeros(shape[1:], dtype=torch.uint8)
                else:
                    image = self._steps.finish(sample)
                if on_host is None:
                    targets[sample.row].copy_(image)
                else:
                    on_host.image(image, targets[sample.row])

        for task in [self._pool.submit(finish, some) for some in self._tasks(samples)]:
            task.result()
        return images

    def _finish_on_gpu(self, samples: list[Sample], together: torch.Tensor | None) -> torch.Tensor:
        """Return ``[N, 3, S, S]`` uint8 on the GPU: DALI's own memory if nothing is left to do."""
        if together is None or len(together) < len(samples):
            shape = (len(samples), self._side, self._side, 3)
            together = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            for sample in samples:
                if sample.part is not None:
                    together[sample.row] = sample.part
                elif sample.decoded is not None:
                    finished = self._steps.finish(sample)
                    together[sample.row] = finished.permute(1, 2, 0).to(self._device)
        images = together.permute(0, 3, 1, 2)
        for sample in samples:
            if sample.part is not None:
                image = images[sample.row]
                augmented = self._steps.augmented(sample, image)
                if augmented is not image:
                    images[sample.row] = augmented
        return images.contiguous(memory_format=self._layout)

    def _tasks(self, samples: list[Sample]) -> list[list[Sample]]:
        size = self._per_task
        return [samples[at : at + size] for at in range(0, len(samples), size)]


def _check_gpu(spec: LoaderSpec) -> None:
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
