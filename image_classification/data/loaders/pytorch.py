"""Data backend ``pytorch``: torchvision decodes and resizes in DataLoader processes."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from image_classification.core.errors import DataError
from image_classification.core.types import Batch
from image_classification.data.augment import augment
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.index import Index, VanishedError
from image_classification.data.formats.split import SplitRule
from image_classification.data.loaders import LoaderSpec, UndecodableImages
from image_classification.data.loaders.device_prefetch import (
    MEMORY_FORMATS,
    DevicePrefetch,
    HostBatch,
    host_batch,
    look_ahead,
)
from image_classification.data.order import PADDING, Indices, sample_random
from image_classification.data.tools.demo import resolve_data_path
from image_classification.data.transforms import (
    check_transform,
    decode_rgb,
    eval_image,
    resized_crop,
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
_PRELOADED = ["torch", "torchvision.io", "torchvision.transforms.v2"]
_SIGNALS_FOR_TRAINING = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
_JOIN_S = 5.0
_EXIT_WAIT_S = 0.5

Request = tuple[int, Indices]
"""An epoch, and the sample indices ``[N]`` of one of its micro-batches."""


class TorchvisionLoader:
    """A `Loader` of a data set in any format, or of ``demo``.

    Worker processes start at the first epoch and stay until `close`.

    Raises:
        DataError: see `open_index`; or the train images do not fill one global batch. ConfigError:
            sizes or ranges that contradict each other.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        data = spec.data
        check_transform(data, spec.split)
        root = resolve_data_path(data.path)
        rule = SplitRule.of(data)
        index = open_index(root, spec.split, spec.num_classes, data.format, rule, spec.classes)
        self.num_images = len(index)
        self.notes = index.notes
        self.num_quarantined = index.num_quarantined
        self.undecodable = UndecodableImages(len(index), data.error_budget)
        self.classes, self.class_names = index.classes, index.class_names
        self._order = spec.batch_order(len(index))
        self.steps_per_epoch = self._order.steps_per_epoch
        self._device = torch.device(spec.device)
        self._prefetch = DevicePrefetch(self._device, data.mean, data.std)
        self._requests: list[Request] = []
        self._running: Generator[Batch, None, None] | None = None
        self._guard: WorkerGuard | None = None
        self._images = ImageBatches(index, spec)
        self._loader: DataLoader[HostBatch] | None = self._make_loader(data.workers, data.prefetch)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """See `Loader.epoch`. A worker that died raises DataError as well."""
        if self._loader is None:
            raise ValueError("the loader is closed")
        batches = self._order.batches(epoch, start_step)
        self._stop_running()
        self._requests[:] = [(epoch, indices) for indices in batches]
        known = set(multiprocessing.active_children())
        # With persistent workers this also discards the rest of an interrupted epoch.
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
        if self._guard is None:
            self._guard = WorkerGuard(set(multiprocessing.active_children()) - known)
        self._running = self._run(host)
        return self._running

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``, as in quarantine lists."""
        return self._images.index.name(index)

    def read_sample(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return the encoded content of image ``index``; see `Loader.read_sample`."""
        return self._images.index.read(index)

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
            self.undecodable.note(dict(batch.undecodable))
            yield batch

    def _worker_died(self, error: Exception) -> bool:
        """Return whether ``error`` means that a worker died.

        DataLoader raises RuntimeError if it waits for a dead worker. If one dies after announcing a
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

    def _make_loader(self, workers: int, prefetch: int) -> DataLoader[HostBatch]:
        of_workers: dict[str, Any] = {}
        if workers:
            of_workers = {
                "multiprocessing_context": worker_context(),
                "prefetch_factor": prefetch,
                "persistent_workers": True,
                "worker_init_fn": init_worker,
            }
        with _no_advice():
            return DataLoader(
                self._images,
                batch_size=None,  # a request is a whole batch already
                sampler=self._requests,
                num_workers=workers,
                pin_memory=self._device.type == "cuda",
                # By default every epoch would draw from torch's global generator, and a resumed
                # run would draw a different number of times.
                generator=torch.Generator(),
                **of_workers,
            )


@contextmanager
def _no_advice() -> Iterator[None]:
    """Silence torch's advice on the number of workers: the configuration decides."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class ImageBatches(Dataset[HostBatch]):
    """Makes the micro-batch of a request; runs in the workers.

    The result depends only on (seed, epoch, sample index). DataLoader gives each worker one torch
    thread.
    """

    def __init__(self, index: Index, spec: LoaderSpec) -> None:
        # Tensors are passed to the workers in shared memory; arrays would be copied to each.
        columns = index.columns()
        self._columns = {name: torch.from_numpy(column) for name, column in columns.items()}
        self._empty = index.with_columns({name: a[:0] for name, a in columns.items()})
        self._index: Index | None = None
        self.spec = spec

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
        try:
            batch = self._make(*request)
            if get_worker_info() is not None:
                _share(batch)
            return batch
        except DataError as error:
            # Raised here, it would reach the user wrapped in this process's traceback.
            nothing = torch.empty(0)
            return HostBatch(nothing, nothing, nothing, error.message)

    def _make(self, epoch: int, indices: Indices) -> HostBatch:
        data, is_train = self.spec.data, self.spec.split == "train"
        shape = (len(indices), 3, data.image_size, data.image_size)
        # By name: a torch.memory_format does not unpickle where __main__ has imported torch.
        layout = MEMORY_FORMATS[self.spec.memory_format]
        images = torch.empty(shape, dtype=torch.uint8, memory_format=layout)
        lost: dict[int, str] = {}
        for row, index in enumerate(indices.tolist()):
            if index == PADDING:
                images[row] = 0
                continue
            try:
                content, where = self.index.read(index), self.index.where(index)
                image = decode_rgb(content, where, data.exif_orientation)
            except DataError as error:
                if isinstance(error, VanishedError) or not is_train:
                    raise
                lost[row] = error.message
                continue
            images[row] = (
                self._train_image(image, epoch, index) if is_train else eval_image(image, data)
            )
        return host_batch(images, indices, self.index, lost)

    def _train_image(self, image: torch.Tensor, epoch: int, index: int) -> torch.Tensor:
        data = self.spec.data
        random = sample_random(self.spec.seed, epoch, index)
        box = sample_crop(random, image.shape[2], image.shape[1], data)
        crop = resized_crop(image, box, data)
        if random.random() < data.hflip_prob:
            crop = crop.flip(-1)
        return augment(crop, data, random)


def _share(batch: HostBatch) -> None:
    """Move ``batch`` to shared memory, or raise DataError if there is no room.

    A loader process does this itself: in the thread of its queue a failure would only be printed,
    and the training process would wait for the batch forever.
    """
    try:
        for tensor in (batch.images, batch.labels, batch.valid):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not lacks_shared_memory(error):
            raise
        raise DataError(NO_SHARED_MEMORY) from error


def lacks_shared_memory(error: RuntimeError | OSError) -> bool:
    """Return whether ``error`` means that /dev/shm is full; torch's has only a text."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return "shared memory" in str(error) or "unable to write to file" in str(error)


def worker_context() -> ForkServerContext:
    """Return the context loader processes start from, with its server running.

    Forking the training process itself is not safe: it has threads (CUDA, autograd, pinning) and
    Python 3.12 warns about it. Spawning imports torch in every worker (eight on two cores: 12 s).
    The fork server imports it once (3 to 4 s, in the background) and then forks in milliseconds.

    Schedulers and torchrun send SIGTERM to every process of a job, and a terminal sends SIGINT on
    Ctrl-C. The training process then finishes its step and saves, for which it still needs its
    workers. So they start with these signals blocked, and end when their loader closes or with the
    training process. The server itself ignores SIGINT only after its imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_FOR_TRAINING)
    try:
        # multiprocessing's resource tracker ignores SIGTERM but would end on SIGUSR1. Starting it
        # unblocks SIGTERM in this thread, so the signals are blocked again after it.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_FOR_TRAINING)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def init_worker(worker_id: int) -> None:
    """Set up a loader process: ignore signals, end with the training process.

    DataLoader's own watchdog looks at the parent process. That is the fork server here, which lives
    as long as its workers: after a SIGKILL to the training process both would stay forever.
    """
    # Usually blocked already, but not if something else started the fork server first. Ignored
    # rather than blocked here, because libraries have started threads that keep their own mask.
    for number in _SIGNALS_FOR_TRAINING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training_process, daemon=True).start()
    # If the queue's thread cannot send a batch (no file descriptor left), it would drop it with a
    # traceback, and the training process would wait for it forever. It does notice a dead worker.
    Queue._on_queue_feeder_error = staticmethod(_exit_on_lost_batch)  # type: ignore[attr-defined]


def _exit_on_lost_batch(error: Exception, batch: object) -> None:
    os.write(2, f"a loader process cannot send its batch: {error}\n".encode())
    os._exit(1)


def _end_with_training_process() -> None:
    training_process = multiprocessing.parent_process()
    assert training_process is not None
    training_process.join()
    os._exit(0)


class WorkerGuard:
    """Kills loader processes at `end`, or when Python exits without it.

    At exit multiprocessing sends SIGTERM to daemons and waits for them: with SIGTERM blocked that
    would take forever. They can be killed: they have nothing to clean up, since shared memory is
    unlinked as soon as it is opened.
    """

    def __init__(self, processes: Iterable[BaseProcess]) -> None:
        self.processes = tuple(processes)
        atexit.register(self.end)

    def any_dead(self) -> bool:
        """Return whether a process has ended by itself; wait briefly for one that is ending."""
        for process in self.processes:
            process.join(_EXIT_WAIT_S)
        return any(not process.is_alive() for process in self.processes)

    def end(self) -> None:
        """Kill the processes that still run; may be called twice."""
        atexit.unregister(self.end)
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join(_JOIN_S)
