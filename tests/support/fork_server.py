"""Forks ``launch.py`` jobs from a process that has its imports done.

Reads one JSON object per line from stdin, ``{"argv", "environ", "out", "err", "script"}``, forks a
process that runs ``launch.py ARGV`` (or ``SCRIPT ARGV``), and answers ``{"pid"}`` on stdout. When
the process has ended it writes ``{"pid", "code"}``; a negative code is a signal's number. Exits at
the end of stdin.

The jobs draw no plots for their report: plots take as long as the training of a test.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

Main = Callable[[Sequence[str]], int]


def main() -> None:
    # Import what launch.py imports; none of it starts a thread.
    from image_classification.__main__ import run
    from image_classification.launch import recorder

    def launch(argv: Sequence[str]) -> int:
        return run(["launch", *argv])

    recorder.draw_run = lambda *arguments: None  # type: ignore[attr-defined,assignment]

    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    _answer({"ready": True})
    buffered = b""
    while True:
        ready, _, _ = select.select([0, wakeup_read], [], [])
        if wakeup_read in ready:
            os.read(wakeup_read, 512)
            _reap()
        if 0 in ready:
            received = os.read(0, 65536)
            if not received:
                return
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                _fork(json.loads(line), launch, (wakeup_read, wakeup_write))


def _fork(job: dict[str, Any], launch: Main, inherited_fds: tuple[int, int]) -> None:
    pid = os.fork()
    if pid:
        _answer({"pid": pid})
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd in inherited_fds:
        os.close(fd)
    _run(job, launch)


def _run(job: dict[str, Any], launch: Main) -> NoReturn:
    os.setsid()
    for fd, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, job["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, fd)
        os.close(opened)
    os.environ.update(job["environ"])
    code = 1
    try:
        if job["script"]:
            sys.argv = [job["script"], *job["argv"]]
            runpy.run_path(job["script"], run_name="__main__")
            code = 0
        else:
            code = launch(job["argv"])
    except BaseException:
        traceback.print_exc()
    # Run the exit handlers, which stop loader processes, but skip the interpreter's teardown: it
    # would copy the memory shared with the parent.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _answer({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _answer(content: dict[str, Any]) -> None:
    os.write(1, (json.dumps(content) + "\n").encode())


if __name__ == "__main__":
    main()
