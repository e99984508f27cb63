"""Probes: functions that may crash or hang, called in a child process with a time limit.

The child reads calls as JSON lines from its standard input and answers each with a JSON line. If
a call crashes or hangs, the parent ends the child and starts another one for the next call. The
parent never imports torch, DALI or a CUDA library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
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


class Prober:
    """Calls probes in a child process, which starts with the first call."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        """Return ``function(*arguments)``; arguments and result as JSON, a dataclass as a dict.

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
    children: list[_Child] = []
    try:
        for each in arguments:
            children.append(_Child())
            children[-1].send(function, each)
        return _collect(children, limit_s)
    finally:
        for child in children:
            child.end()


class _Child:
    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._log_start = 0
        code = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as p; p.serve()"
        # Unbuffered, so that select() sees every answer.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._calls, self._answers = self._process.stdin, self._process.stdout

    def fileno(self) -> int:
        return self._answers.fileno()

    def send(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self._log_start = os.fstat(self._log.fileno()).st_size
        call = [function.__module__, function.__name__, arguments]
        try:
            self._calls.write(json.dumps(call).encode() + b"\n")
        except BrokenPipeError:
            return  # it has ended; `answer` says how

    def answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise ProbeError(self._how_it_ended())
        answer = json.loads(line)
        if "error" in answer:
            raise ProbeError(answer["error"], is_user_error=answer["is_user_error"])
        return answer["result"]

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
        for file in (self._calls, self._answers, self._log):
            file.close()


def _collect(children: Sequence[_Child], limit_s: float) -> list[Any]:
    """Return the answers of ``children``. The first failure ends it, since others may wait."""
    deadline_s = time.monotonic() + limit_s
    results: dict[_Child, Any] = {}
    while len(results) < len(children):
        waiting = [child for child in children if child not in results]
        ready, _, _ = select.select(waiting, [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise ProbeError(f"no answer within {limit_s:g} s", is_late=True)
        for child in ready:
            results[child] = child.answer()
    return [results[child] for child in children]


def serve() -> None:
    """Answer calls until standard input ends: the child's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the child
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, some from C++, must not mix with the answers
    calls: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_calls, args=(calls,), daemon=True).start()
    while True:
        module, name, arguments = json.loads(calls.get())
        print(_answer(module, name, arguments), file=answers, flush=True)


def _read_calls(calls: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        calls.put(line)
    os._exit(0)  # the parent has ended, even if a probe hangs


def _answer(module: str, name: str, arguments: Sequence[Any]) -> str:
    try:
        result = getattr(importlib.import_module(module), name)(*arguments)
        if dataclasses.is_dataclass(result) and not isinstance(result, type):
            result = dataclasses.asdict(result)
        return json.dumps({"result": result})
    except BaseException as error:
        is_user_error = isinstance(error, UserError)
        text = error.message if isinstance(error, UserError) else one_line(error)
        return json.dumps({"error": text, "is_user_error": is_user_error})


def one_line(error: BaseException) -> str:
    """Return the exception's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
