"""Data backend ``pytorch``: torchvision decodes and resizes in DataLoader processes."""

from __future__ import annotations

import errno
import multiprocessing
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from image_classification.core.errors import DataError
from image_classification.core.types import Batch
from image_classification.data.augment import augment
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.index import Index, VanishedError
from image_classification.data.loaders.decode import decode_rgb, eval_image, resized_crop
from image_classification.data.loaders.device_prefetch import (
    MEMORY_FORMATS,
    DevicePrefetch,
    HostBatch,
    look_ahead,
    replace_rows,
)
from image_classification.data.loaders.protocol import LoaderSpec, UndecodableImages
from image_classification.data.loaders.workers import WorkerGuard, init_worker, worker_context
from image_classification.data.order import PADDING, Indices, batch_order, sample_random
from image_classification.data.tools.demo import resolve_data_path
from image_classification.data.transforms import (
    EvalTransform,
    TrainTransform,
    image_transform,
    sample_crop,
)

_WORKER_DIED = (
    "a data loader process died, most often because memory or shared memory ran out: lower "
    "data.workers or data.prefetch, or give a container more shared memory (docker run --ipc=host)"
)
NO_SHARED_MEMORY = (
    "shared memory ran out while loader processes hand over their batches: give the container more "
    "(docker run --ipc=host, or --shm-size=8g), or lower data.workers, data.prefetch or the batch"
)

Request = tuple[int, Indices]
"""An epoch, and the sample indices ``[N]`` of one of its micro-batches."""


def open_loader(spec: LoaderSpec) -> TorchvisionLoader:
    """Open one split of a data set in any format, or of ``demo``.

    Raises:
        DataError: see `image_classification.data.formats.folder.open_index`; or the train images do
            not fill one global batch. ConfigError: sizes or ranges that contradict each other.
    """
    root, layout = resolve_data_path(spec.data.path), spec.data.format
    return TorchvisionLoader(spec, open_index(root, spec.split, spec.num_classes, layout))


class TorchvisionLoader:
    """A `image_classification.data.loaders.protocol.Loader` over the images of an index.

    Worker processes start at the first epoch and stay until `close`.
    """

    def __init__(self, spec: LoaderSpec, index: Index) -> None:
        self.num_images = len(index)
        self.num_quarantined = index.num_quarantined
        self.undecodable = UndecodableImages(len(index), spec.data.error_budget)
        self.classes = index.classes
        self._order = batch_order(spec, len(index))
        self.steps_per_epoch = self._order.steps_per_epoch
        self._device = torch.device(spec.device)
        self._prefetch = DevicePrefetch(self._device, spec.data.mean, spec.data.std)
        self._has_workers = spec.data.workers > 0
        self._requests = RequestSampler()
        self._running: Generator[Batch, None, None] | None = None
        self._guard: WorkerGuard | None = None
        transform = image_transform(spec.data, spec.split)
        self._images = ImageBatches(index, transform, spec.seed, spec.memory_format)
        self._loader: DataLoader[HostBatch] | None = self._make_loader(spec)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """See `image_classification.data.loaders.protocol.Loader.epoch`.

        A worker that died raises DataError as well.
        """
        if self._loader is None:
            raise ValueError("the loader is closed")
        batches = self._order.batches(epoch, start_step)
        self._stop_running()
        self._requests.requests = [(epoch, indices) for indices in batches]
        known = set(multiprocessing.active_children())
        # With persistent workers this also discards what is left of an epoch that was broken off.
        try:
            with _no_advice():
                host = iter(self._loader)
        except (RuntimeError, OSError, EOFError) as error:
            if self._worker_died(error):  # since the previous epoch
                self._forget_workers()
                raise DataError(_WORKER_DIED) from error
            # Queues and the columns of the index are in shared memory, too.
            if isinstance(error, EOFError) or not lacks_shared_memory(error):
                raise
            WorkerGuard(set(multiprocessing.active_children()) - known).end()
            raise DataError(NO_SHARED_MEMORY) from error
        if self._has_workers and self._guard is None:
            self._guard = WorkerGuard(set(multiprocessing.active_children()) - known)
        self._running = self._run(host)
        return self._running

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``, as in quarantine lists."""
        return self._images.index.name(index)

    def close(self) -> None:
        """Stop the workers; may be called twice."""
        self._stop_running()
        self._forget_workers()

    def _run(self, host: Iterator[HostBatch]) -> Generator[Batch, None, None]:
        depth = 1 if self._device.type == "cuda" else 0
        staged = (self._prefetch.put(batch) for batch in self._checked(host))
        for item in look_ahead(staged, depth):
            yield self._prefetch.take(item)

    def _checked(self, host: Iterator[HostBatch]) -> Iterator[HostBatch]:
        while True:
            try:
                batch = next(host)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not self._worker_died(error):
                    raise
                self._forget_workers()
                raise DataError(_WORKER_DIED) from error
            if batch.error:
                raise DataError(batch.error)
            if batch.undecodable:
                self.undecodable.note(dict(batch.undecodable))
            yield batch

    def _worker_died(self, error: Exception) -> bool:
        """Return whether ``error`` means that a worker died.

        DataLoader raises a RuntimeError when it waits in vain. If a worker dies after announcing a
        batch, its shared memory cannot be reached: an OSError or EOFError.
        """
        if isinstance(error, RuntimeError):
            return str(error).startswith("DataLoader worker")
        return self._guard is not None and self._guard.any_dead()

    def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _forget_workers(self) -> None:
        """Close the DataLoader and end its workers."""
        self._loader = None  # the last reference: DataLoader asks its workers to end, and waits
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def _make_loader(self, spec: LoaderSpec) -> DataLoader[HostBatch]:
        data = spec.data
        with _no_advice():
            return DataLoader(
                self._images,
                batch_size=None,  # a request is a whole batch already
                sampler=self._requests,
                num_workers=data.workers,
                multiprocessing_context=worker_context() if self._has_workers else None,
                prefetch_factor=data.prefetch if self._has_workers else None,
                persistent_workers=self._has_workers,
                worker_init_fn=init_worker if self._has_workers else None,
                pin_memory=self._device.type == "cuda",
                # By default every epoch would draw from torch's global generator, and a resumed
                # run would draw a different number of times.
                generator=torch.Generator(),
            )


@contextmanager
def _no_advice() -> Iterator[None]:
    """Silence torch's advice on the number of workers: the configuration decides."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class RequestSampler(Sampler[Request]):
    """Passes the current epoch's requests to the DataLoader."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class ImageBatches(Dataset[HostBatch]):
    """Makes the micro-batch of a request; runs in the workers.

    The result depends only on (seed, epoch, sample index). DataLoader gives each worker one torch
    thread.
    """

    def __init__(
        self,
        index: Index,
        transform: TrainTransform | EvalTransform,
        seed: int,
        memory_format: str,
    ) -> None:
        # Tensors are passed to the workers in shared memory; arrays would be copied to each.
        self._columns = {name: torch.from_numpy(a) for name, a in index.columns().items()}
        self._empty = index.with_columns({name: a[:0] for name, a in index.columns().items()})
        self._index: Index | None = None
        self._transform = transform
        self._seed = seed
        # The name: a torch.memory_format does not unpickle where __main__ has imported torch.
        self._memory_format = memory_format

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}

    @property
    def index(self) -> Index:
        """The index, over this process's view of the shared columns."""
        if self._index is None:
            arrays = {name: column.numpy() for name, column in self._columns.items()}
            self._index = self._empty.with_columns(arrays)
        return self._index

    def __getitem__(self, request: Request) -> HostBatch:
        batch = self._make(*request)
        if get_worker_info() is None or _share((batch.images, batch.labels, batch.valid)):
            return batch
        nothing = torch.empty(0)
        return HostBatch(nothing, nothing, nothing, NO_SHARED_MEMORY)

    def _make(self, epoch: int, indices: Indices) -> HostBatch:
        transform = self._transform
        is_train = isinstance(transform, TrainTransform)
        shape = (len(indices), 3, transform.side, transform.side)
        layout = MEMORY_FORMATS[self._memory_format]
        images = torch.empty(shape, dtype=torch.uint8, memory_format=layout)
        wanted = torch.from_numpy(indices)
        valid = wanted != PADDING
        images[~valid] = 0
        labels = torch.where(valid, self._columns["labels"][wanted.clamp(min=0)], 0)
        lost: dict[int, tuple[str, str]] = {}
        for row, index in enumerate(indices.tolist()):
            if index == PADDING:
                continue
            try:
                image = decode_rgb(self.index.read(index), self.index.where(index))
            except DataError as error:
                # Raised here, it would reach the user wrapped in this process's traceback.
                if isinstance(error, VanishedError) or not is_train:
                    return HostBatch(images, labels, valid, error.message)
                lost[row] = (self.index.name(index), error.message)
                continue
            if isinstance(transform, TrainTransform):
                images[row] = self._train_image(image, transform, epoch, index)
            else:
                images[row] = eval_image(image, transform)
        if lost and len(lost) == len(indices):
            reason = f"no image of a micro-batch of {len(lost)} could be read: {lost[0][1]}"
            return HostBatch(images, labels, valid, reason)
        if lost:
            replace_rows(images, labels, tuple(lost))
        return HostBatch(images, labels, valid, "", tuple(lost.values()))

    def _train_image(
        self, image: torch.Tensor, transform: TrainTransform, epoch: int, index: int
    ) -> torch.Tensor:
        random = sample_random(self._seed, epoch, index)
        box = sample_crop(random, image.shape[2], image.shape[1], transform)
        crop = resized_crop(image, box, transform)
        if random.random() < transform.hflip_prob:
            crop = crop.flip(-1)
        return augment(crop, transform, random)


def _share(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Move ``tensors`` to shared memory; return False if there is no room.

    A loader process does this itself: in the thread of its queue a failure would only be printed,
    and the training process would wait for the batch forever.
    """
    try:
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not lacks_shared_memory(error):
            raise
        return False
    return True


def lacks_shared_memory(error: RuntimeError | OSError) -> bool:
    """Return whether ``error`` means that /dev/shm is full; torch's has only a text."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return "shared memory" in str(error) or "unable to write to file" in str(error)
