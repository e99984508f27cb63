"""Run one function over many tasks in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from image_classification.core.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with a label (such as the split), the units done and the units in total."""

_TASKS_PER_MESSAGE = 32

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


def no_progress(label: str, done: int, total: int) -> None:
    """Show nothing."""


def default_workers() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    function: Callable[[Any, TaskT], ResultT], shared: object, tasks: Sequence[TaskT], workers: int
) -> Iterator[ResultT]:
    """Yield ``function(shared, task)`` for each task, in the order of ``tasks``.

    ``function`` must be importable. ``shared`` is sent to each worker once. With 0 workers
    everything runs in this process. The workers end when the iterator is exhausted or closed.

    Raises:
        DataError: a worker died. An exception in ``function`` is raised here.
    """
    if workers == 0:
        yield from (function(shared, task) for task in tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])  # imported once, not in each worker
    try:
        with ProcessPoolExecutor(
            max_workers=min(workers, max(1, len(tasks))),
            mp_context=context,
            initializer=_start_worker,
            initargs=(function, shared),
        ) as executor:
            yield from executor.map(_call, tasks, chunksize=_TASKS_PER_MESSAGE)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, most often because memory ran out: give a smaller --workers"
        ) from error


_worker_state: tuple[Callable[[Any, Any], Any], Any]


def _start_worker(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _worker_state
    _worker_state = (function, shared)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    # A broken pool ends its workers with SIGTERM, which a fork server of loaders blocks.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_main_process, daemon=True).start()


def _exit_with_main_process() -> None:
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    main_process.join()
    os._exit(1)


def _call(task: Any) -> Any:
    function, shared = _worker_state
    return function(shared, task)
