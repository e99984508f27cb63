"""Work in a thread of its own, whose end and error are asked for later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """One call of a function in a thread, begun at once.

    The thread is no daemon: an interpreter that exits waits for it, so that what is being written
    is written. After the call only its result or its error (with the frames it came from) is kept.
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._outcome: tuple[T] | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name)
        self._thread.start()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._outcome = (work(),)
        except BaseException as error:
            self._outcome = error

    @property
    def done(self) -> bool:
        """Whether the function has returned or raised; never waits."""
        return self._outcome is not None

    def wait(self) -> None:
        """Wait for the end, whatever it is."""
        self._thread.join()

    def result(self) -> T:
        """Wait for the function; return what it returned or raise what it raised."""
        self.wait()
        if isinstance(self._outcome, tuple):
            return self._outcome[0]
        assert self._outcome is not None
        raise self._outcome
