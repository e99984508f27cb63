"""Threads of a loader that has no processes: one that runs ahead, and a pool for single images."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

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
