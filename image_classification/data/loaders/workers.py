"""Loader processes: how they start, which signals they ignore, how they end."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

_PRELOADED = ["torch", "torchvision.io", "torchvision.transforms.v2"]
_SIGNALS_FOR_TRAINING = {signal.SIGTERM, signal.SIGUSR1}
_JOIN_S = 5.0
_EXIT_WAIT_S = 0.5


def worker_context() -> ForkServerContext:
    """Return the context loader processes start from, with its server running.

    Forking the training process itself is not safe: it has threads (CUDA, autograd, pinning) and
    Python 3.12 warns about it. Spawning imports torch in every worker (eight on two cores: 12 s).
    The fork server imports it once (3 to 4 s, in the background) and then forks in milliseconds.

    Schedulers and torchrun send SIGTERM to every process of a job. The training process then
    finishes its step and saves, for which it still needs its workers. So they start with these
    signals blocked, and end when their loader closes or with the training process.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
