"""Probes: functions that may crash or hang, called in a child process with a time limit.

Parent and child exchange calls and answers through a socket. If a call crashes or hangs, the parent
ends the child and starts another one for the next call. The parent never imports torch, DALI or a
CUDA library.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import connection
from queue import SimpleQueue
from typing import Any

from image_classification.core.errors import UserError

_END_TIMEOUT_S = 2.0


class ProbeError(Exception):
    """Why a probe has no result, on one line.

    is_late: the time limit was exceeded. is_user_error: the probe raised a UserError.
    """

    def __init__(self, message: str, is_late: bool = False, is_user_error: bool = False) -> None:
        super().__init__(" ".join(message.split()))
        self.is_late = is_late
        self.is_user_error = is_user_error


def one_line(error: BaseException) -> str:
    """Return the exception's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


class Prober:
    """Calls probes in a child process, which starts with the first call."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        """Return ``function(*arguments)``.

        Raises:
            ProbeError: it raised an exception, crashed, or took more than ``limit_s`` seconds.
        """
        self._child = self._child or _Child()
        try:
            self._child.send(function, arguments)
            return _collect([self._child], limit_s)[0]
        except ProbeError:
            self.close()
            raise

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.end()
            self._child = None


def call_together(
    function: Callable[..., Any], arguments: Iterable[Sequence[Any]], limit_s: float
) -> list[Any]:
    """Call ``function`` once per item of ``arguments``, in as many processes at the same time.

    Raises:
        ProbeError: the first call that failed, or the time limit was exceeded.
    """
    with contextlib.ExitStack() as stack:
        children = []
        for each in arguments:
            children.append(_Child())
            stack.callback(children[-1].end)
            children[-1].send(function, each)
        return _collect(children, limit_s)


def _collect(children: Sequence[_Child], limit_s: float) -> list[Any]:
    """Return the answers of ``children``. The first failure ends it, since others may wait."""
    deadline_s = time.monotonic() + limit_s
    results: dict[_Child, Any] = {}
    while len(results) < len(children):
        waiting = [child for child in children if child not in results]
        limit = max(0.0, deadline_s - time.monotonic())
        ready = connection.wait([child.connection for child in waiting], limit)
        if not ready:
            raise ProbeError(f"no answer within {limit_s:g} s", is_late=True)
        for child in waiting:
            if child.connection in ready:
                results[child] = child.answer()
    return [results[child] for child in children]


class _Child:
    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._log_start = 0
        self.connection, child_end = multiprocessing.Pipe()
        with child_end:
            code = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as p"
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{code}; p.serve({child_end.fileno()})"],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(child_end.fileno(),),
            )

    def send(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self._log_start = os.fstat(self._log.fileno()).st_size
        with contextlib.suppress(OSError):  # it has ended; `answer` says how
            self.connection.send((function, arguments))

    def answer(self) -> Any:
        try:
            result, error, is_user_error = self.connection.recv()
        except (EOFError, OSError):
            raise ProbeError(self._how_it_ended()) from None
        if error is not None:
            raise ProbeError(error, is_user_error=is_user_error)
        return result

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_END_TIMEOUT_S)
            how = f"ended with exit code {code}"
            if code < 0:
                how = f"crashed with {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            how = "ended"
        self._log.seek(self._log_start)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}: {last}" if last else how

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)  # it may hang in the kernel, on a dead network disk
        self.connection.close()
        self._log.close()


def serve(socket: int) -> None:
    """Answer calls until the parent ends: the child's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the child
    parent = connection.Connection(socket)
    calls: SimpleQueue[tuple[Callable[..., Any], Sequence[Any]]] = SimpleQueue()
    threading.Thread(target=_read_calls, args=(parent, calls), daemon=True).start()
    while True:
        function, arguments = calls.get()
        try:
            parent.send((function(*arguments), None, False))
        except UserError as error:
            parent.send((None, error.message, True))
        except BaseException as error:
            parent.send((None, one_line(error), False))


def _read_calls(parent: connection.Connection, calls: SimpleQueue[Any]) -> None:
    try:
        while True:
            calls.put(parent.recv())
    finally:
        os._exit(0)  # the parent has ended, even if a probe hangs
