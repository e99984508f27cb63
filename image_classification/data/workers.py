"""Loader processes: how they start, which signals they hear, how they end."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the data set tools start processes without it
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
    """Leave Ctrl-C to the training process, and end when that process is gone.

    DataLoader's own watch looks at the parent process. That is the fork server here, which lives
    as long as its workers do: after a SIGKILL to the training process both would stay for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked as a rule, but not from a fork server that something else started first: ignored as
    # well, since libraries have threads here by now that a mask would not reach.
    for number in _FOR_THE_TRAINING_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training_process, daemon=True).start()


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
