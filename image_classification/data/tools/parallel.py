"""One function over many tasks, in processes: what checking and making data sets share."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from image_classification.core.errors import DataError
from image_classification.data.loaders.workers import init_worker

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

SharedT = TypeVar("SharedT")
TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_AHEAD = 4


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


def default_workers() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    function: Callable[[SharedT, TaskT], ResultT],
    shared: SharedT,
    tasks: Sequence[TaskT],
    workers: int,
) -> Iterator[ResultT]:
    """Yield ``function(shared, task)`` for each task, in the order of ``tasks``.

    ``function`` must be importable; ``shared`` travels once to each process. With 0 workers all
    is done in this process. Processes end with the iterator, however it ends.

    Raises:
        DataError: a process died. What ``function`` raises is raised here.
    """
    if workers == 0:
        yield from (function(shared, task) for task in tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])  # imports torch once, not in each
    executor = ProcessPoolExecutor(
        max_workers=min(workers, max(1, len(tasks))),
        mp_context=context,
        initializer=_start,
        initargs=(function, shared),
    )
    try:
        waiting: collections.deque[Future[ResultT]] = collections.deque()
        rest = iter(tasks)
        for task in itertools.islice(rest, workers * _AHEAD):
            waiting.append(executor.submit(_call, task))
        while waiting:
            result = waiting.popleft().result()
            for task in itertools.islice(rest, 1):
                waiting.append(executor.submit(_call, task))
            yield result
    except BrokenProcessPool as error:
        raise DataError(
            "a process died, most often for want of memory: give a smaller --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_state: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _state
    init_worker(0)
    # A broken pool ends its processes with SIGTERM, which loader workers ignore and block.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _state = (function, shared)


def _call(task: Any) -> Any:
    assert _state is not None
    function, shared = _state
    return function(shared, task)
