"""Imported once in the server that the doctor's processes are forked from.

What cannot be imported is noted, since an exception here would end the server for every check.

Functions called in processes of their own, with a time limit: what they do may crash or hang.

Torch is imported once, in the server the processes are forked from; the caller needs none.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from image_classification.core.errors import UserError

MODULES = ("torch", "torch.distributed", "torchvision.io", "torchvision.transforms.v2")


def _why_not(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return f"{type(error).__name__}: {error}"
    return ""


FAILURES = {module: why for module in MODULES if (why := _why_not(module))}
"""Module -> why it cannot be imported; only the first attempt tells the true reason."""


_PRELOADED = ["image_classification.doctor.probe"]
_ENDING_S = 2.0
_POLL_S = 0.02


class IsolatedError(Exception):
    """Why a call has no result, in one line; is_late: it ran past its limit.

    is_user_error: the function itself said so, with a remedy.
    """

    def __init__(self, message: str, is_late: bool = False, is_user_error: bool = False) -> None:
        super().__init__(" ".join(message.split()))
        self.is_late = is_late
        self.is_user_error = is_user_error


@dataclass(frozen=True)
class Call:
    """A function to be called elsewhere. target: ``module:function``; args pickle."""

    target: str
    args: tuple[Any, ...] = ()


def call(target: str, *args: Any, limit_s: float) -> Any:
    """Return ``target(*args)``, computed in another process.

    Raises:
        IsolatedError: it raised, crashed, or took more than ``limit_s`` seconds.
    """
    return call_together([Call(target, args)], limit_s)[0]


def call_together(calls: Sequence[Call], limit_s: float) -> list[Any]:
    """Return the results of ``calls``, each in a process of its own, all at once.

    Raises:
        IsolatedError: any of them raised, crashed, or all took more than ``limit_s`` seconds; the
            others are ended.
    """
    deadline = time.monotonic() + limit_s
    running: list[_Running] = []
    with tempfile.TemporaryDirectory(prefix="image-classification-") as folder:
        try:
            for number, each in enumerate(calls):
                running.append(_start(each, Path(folder) / f"{number}.log"))
            # The first to fail explains it; the rest may be waiting for that one.
            waiting = list(running)
            while waiting:
                for one in list(waiting):
                    if one.has_ended():
                        one.take()
                        waiting.remove(one)
                if waiting and time.monotonic() > deadline:
                    raise IsolatedError(f"no answer within {limit_s:g} s", is_late=True)
                time.sleep(_POLL_S)
            return [one.result for one in running]
        finally:
            for one in running:
                one.end()


class _Running:
    def __init__(self, process: BaseProcess, results: Connection, log: Path) -> None:
        self.process = process
        self.result: Any = None
        self._results = results
        self._log = log

    def has_ended(self) -> bool:
        return self._results.poll() or not self.process.is_alive()

    def take(self) -> None:
        try:
            kind, content = self._results.recv()
        except EOFError:
            raise IsolatedError(self._how_it_ended()) from None
        if kind != "result":
            raise IsolatedError(content, is_user_error=kind == "user error")
        self.result = content

    def _how_it_ended(self) -> str:
        self.process.join(_ENDING_S)
        code = self.process.exitcode
        try:
            how = f"crashed with {signal.Signals(-(code or 0)).name}"
        except ValueError:
            how = f"ended with exit code {code}"
        said = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"{how}: {last}" if last else how

    def end(self) -> None:
        self._results.close()
        if self.process.is_alive():
            self.process.kill()
        # One that hangs in the kernel stays, see `any_stuck`.
        self.process.join(_ENDING_S)


def _start(each: Call, log: Path) -> _Running:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    resource_tracker.ensure_running()  # unblocks SIGINT, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        # Ctrl-C is the caller's; the server would write a traceback while it imports.
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, each, str(log)), daemon=True)
    process.start()
    sender.close()
    return _Running(process, receiver, log)


def _run(results: Connection, each: Call, log: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except FileNotFoundError:  # the caller ended before the server came to this
        os._exit(1)
    # Libraries print to both, some from C++; nothing of it may get into the caller's output.
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        module, _, name = each.target.partition(":")
        # The names are this package's own, never a user's.
        content = vars(importlib.import_module(module))[name](*each.args)
        results.send(("result", content))
    except UserError as error:
        results.send(("user error", error.message))
    except BaseException as error:
        results.send(("error", one_line(error)))


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def one_line(error: BaseException) -> str:
    """Write any exception on one line: its kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def any_stuck() -> bool:
    """Return whether a process could not be ended: it hangs in the kernel, on a dead disk."""
    return any(process.is_alive() for process in multiprocessing.active_children())
