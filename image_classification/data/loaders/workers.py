"""Loader processes: how they start, which signals they hear, how they end.

Threads of a loader that has no processes: one that runs ahead, and a pool for single images.
"""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    import torch

_PRELOADED = ["torch", "torchvision.io", "torchvision.transforms.v2"]
_FOR_THE_TRAINING_PROCESS = {signal.SIGTERM, signal.SIGUSR1}
_JOIN_S = 5.0
_DYING_S = 0.5

NO_SHARED_MEMORY = (
    "shared memory ran out while loader processes hand over their batches: give the container more "
    "(docker run --ipc=host, or --shm-size=8g), or lower data.workers, data.prefetch or the batch"
)


def move_to_shared_memory(tensors: Iterable[torch.Tensor]) -> bool:
    """Put ``tensors`` where other processes can read them; False where there is no room.

    A loader process does this itself: left to the thread of its queue, a failure would be printed
    there and the training process would wait for the batch for ever.
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
    """Return whether ``error`` is of a full /dev/shm; torch's has its text alone."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return "shared memory" in str(error) or "unable to write to file" in str(error)


def worker_context() -> ForkServerContext:
    """Return the context loader processes start from, its server running.

    Forking the training process itself is not safe: it has threads (CUDA, autograd, pinning) and
    Python 3.12 warns of it. Spawning imports torch in every worker (eight on two cores: 12 s). The
    fork server imports it once (3 to 4 s, in the background) and then forks in milliseconds.

    Schedulers and torchrun send SIGTERM to every process of a job. The training process answers
    by finishing its step and saving, for which it still needs its workers: they start with those
    signals blocked and end when their loader closes, or with the training process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINING_PROCESS)
    try:
        # multiprocessing's own tracker ignores SIGTERM but would die of SIGUSR1. Starting it
        # unblocks SIGTERM in this thread, so the signals are blocked once more after it.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINING_PROCESS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def init_worker(worker_id: int) -> None:
    """Leave Ctrl-C to the training process; end when that is gone, or a batch cannot be sent.

    DataLoader's own watch looks at the parent process. That is the fork server here, which lives
    as long as its workers do: after a SIGKILL to the training process both would stay for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked as a rule, but not from a fork server that something else started first: ignored as
    # well, since libraries have threads here by now that a mask would not reach.
    for number in _FOR_THE_TRAINING_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training_process, daemon=True).start()
    # A batch that its queue's thread cannot send (no file descriptor left) would be dropped with a
    # traceback, and the training process would wait for it for ever: a dead worker is noticed.
    Queue._on_queue_feeder_error = staticmethod(_end_over_lost_batch)  # type: ignore[attr-defined]


def _end_over_lost_batch(error: Exception, batch: object) -> None:
    os.write(2, f"a loader process cannot send its batch: {error}\n".encode())
    os._exit(1)


def _end_with_training_process() -> None:
    training_process = multiprocessing.parent_process()
    assert training_process is not None
    training_process.join()
    os._exit(0)


class WorkerGuard:
    """Sees to it that loader processes are gone after `end`, or when Python exits without it.

    multiprocessing ends daemons with SIGTERM at exit and waits for them: with SIGTERM blocked that
    would be for ever. They hold nothing that needs cleaning up (shared memory is unlinked as soon
    as it is opened), so they are killed.
    """

    def __init__(self, processes: Iterable[BaseProcess]) -> None:
        self.processes = tuple(processes)
        atexit.register(self.end)

    def any_dead(self) -> bool:
        """Return whether one of them has ended by itself; waits a moment for one that is ending."""
        for process in self.processes:
            process.join(_DYING_S)
        return any(not process.is_alive() for process in self.processes)

    def end(self) -> None:
        """Kill what still runs; may be called twice."""
        atexit.unregister(self.end)
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join(_JOIN_S)


T = TypeVar("T")

_STOP_POLL_S = 0.05


@dataclass(frozen=True)
class _End:
    """No more items; ``error`` is why, where that is not the regular end."""

    error: BaseException | None


class Ahead(Generic[T]):
    """Draws from ``items`` in a thread of its own, ``depth`` items ahead of who iterates here.

    What ``items`` raises is raised here, after the items before it. The thread is a daemon: a
    program that ends without `stop` does not wait for it.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._is_stopping = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
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
        """End the thread and drop what it has made; may be called twice."""
        self._is_over = True
        self._is_stopping.set()
        while self._thread.is_alive():
            while not self._queue.empty():  # it may be waiting for a place
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


def single_thread_pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool in whose threads torch's operations use no further threads.

    Each would otherwise start as many as there are cores. The setting is kept for each thread and
    once for the process, for threads still to come; that one is put back.
    """
    before = torch.get_num_threads()
    all_started = threading.Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # reads the process's setting, which would otherwise come later
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    for started in [pool.submit(start) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(before)
    return pool
