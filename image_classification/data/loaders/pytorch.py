"""Data backend ``pytorch``: torchvision decodes and resamples in DataLoader processes."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Sampler

from image_classification.core.errors import DataError
from image_classification.core.types import Batch
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.index import Index
from image_classification.data.loaders.decode import ImageBatches, Request
from image_classification.data.loaders.device_prefetch import DeviceFeed, HostBatch, look_ahead
from image_classification.data.loaders.protocol import LoaderSpec, Undecodable
from image_classification.data.loaders.workers import (
    NO_SHARED_MEMORY,
    WorkerGuard,
    init_worker,
    lacks_shared_memory,
    worker_context,
)
from image_classification.data.order import make_plan
from image_classification.data.tools.demo import resolve_data_path
from image_classification.data.transforms import (
    EvalTransform,
    TrainTransform,
    eval_transform,
    train_transform,
)

_WORKER_DIED = (
    "a data loader process died, most often for want of memory or shared memory: lower "
    "data.workers or data.prefetch, or give a container more shared memory (docker run --ipc=host)"
)


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

    Worker processes start at the first epoch and stay until `close`. One epoch runs at a time:
    asking for another ends the one before.
    """

    def __init__(self, spec: LoaderSpec, index: Index) -> None:
        self.num_images = len(index)
        self.num_quarantined = index.num_quarantined
        self.undecodable = Undecodable(len(index), spec.data.error_budget)
        self.classes = index.classes
        self._plan = make_plan(spec, len(index))
        self.steps_per_epoch = self._plan.steps_per_epoch
        self._device = torch.device(spec.device)
        self._feed = DeviceFeed(self._device, spec.data.mean, spec.data.std)
        self._has_workers = spec.data.workers > 0
        self._requests = RequestSampler()
        self._running: Generator[Batch, None, None] | None = None
        self._guard: WorkerGuard | None = None
        data = spec.data
        transform: TrainTransform | EvalTransform
        transform = train_transform(data) if spec.split == "train" else eval_transform(data)
        self._images = ImageBatches(index, transform, spec.seed, spec.memory_format)
        self._loader: DataLoader[HostBatch] | None = self._make_loader(spec)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of ``epoch`` from ``start_step`` on (val: from that batch on).

        Raises:
            ValueError: a closed loader, or a position outside the epoch. DataError, while
            iterating: see `image_classification.data.loaders.protocol.Loader.epoch`, or a worker
            that died.
        """
        if self._loader is None:
            raise ValueError("the loader is closed")
        batches = self._plan.batches(epoch, start_step)
        self._stop_running()
        self._requests.requests = [(epoch, indices) for indices in batches]
        known = set(multiprocessing.active_children())
        # On a loader with persistent workers this also throws away what a broken-off epoch left.
        try:
            with _no_advice():
                host = iter(self._loader)
        except (RuntimeError, OSError, EOFError) as error:
            if self._worker_died(error):  # since the epoch before
                self._forget_workers()
                raise DataError(_WORKER_DIED) from error
            # Queues and the list of images lie in shared memory, too.
            if isinstance(error, EOFError) or not lacks_shared_memory(error):
                raise
            WorkerGuard(set(multiprocessing.active_children()) - known).end()
            raise DataError(NO_SHARED_MEMORY) from error
        if self._has_workers and self._guard is None:
            self._guard = WorkerGuard(set(multiprocessing.active_children()) - known)
        self._running = self._run(host)
        return self._running

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``: the one that quarantine lists have."""
        return self._images.name(index)

    def close(self) -> None:
        """Stop the workers; may be called twice."""
        self._stop_running()
        self._loader = None  # the last reference: DataLoader asks its workers to end, and waits
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def _run(self, host: Iterator[HostBatch]) -> Generator[Batch, None, None]:
        depth = 1 if self._device.type == "cuda" else 0
        staged = (self._feed.put(batch) for batch in self._checked(host))
        for item in look_ahead(staged, depth):
            yield self._feed.take(item)

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
        """Return whether ``error`` is how the end of a worker shows here.

        DataLoader says so when it waits in vain. A worker that dies with a batch already announced
        leaves its shared memory unreachable, which is an OSError or EOFError of the transfer.
        """
        if isinstance(error, RuntimeError):
            return str(error).startswith("DataLoader worker")
        return self._guard is not None and self._guard.any_dead()

    def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _forget_workers(self) -> None:
        """End what is left of the workers; the loader cannot go on without the dead one."""
        if self._guard is not None:
            self._guard.end()
            self._guard = None
        self._loader = None

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
                # Its own generator: by default every epoch draws from torch's global one, and a
                # resumed run would have drawn another number of times.
                generator=torch.Generator(),
            )


@contextmanager
def _no_advice() -> Iterator[None]:
    """Take the configuration's number of workers, whatever torch would suggest."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class RequestSampler(Sampler[Request]):
    """Hands the current epoch's requests to the DataLoader."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)
