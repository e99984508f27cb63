"""Starts ``launch.py`` jobs without waiting for its imports each time.

Reads one JSON object a line from stdin, ``{"argv", "environ", "out", "err", "script"}``, forks a
process that runs ``launch.py ARGV`` (``SCRIPT ARGV`` where one is given) and answers ``{"pid"}``;
when a job has ended, ``{"pid", "code"}`` (minus the signal's number where one killed it, as in
`subprocess`). Ends with its stdin.

Jobs are whole but for the pictures of their report, which no fault here is about and which take as
long as the training.
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


def main() -> None:
    # What launch.py imports on its way; none of it starts a thread.
    from image_classification.cli.launch import main as launch
    from image_classification.launch import recorder as session

    session.draw_run = lambda *what: None  # type: ignore[attr-defined]

    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    _answer({"ready": True})
    commands = b""
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 512)
            _reap()
        if 0 in ready:
            received = os.read(0, 65536)
            if not received:
                return
            *lines, commands = (commands + received).split(b"\n")
            for line in lines:
                _start(json.loads(line), launch, (awake, wake))


def _start(
    job: dict[str, Any], launch: Callable[[Sequence[str]], int], pipe: tuple[int, int]
) -> None:
    pid = os.fork()
    if pid:
        _answer({"pid": pid})
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd in pipe:
        os.close(fd)
    _run(job, launch)


def _run(job: dict[str, Any], launch: Callable[[Sequence[str]], int]) -> NoReturn:
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
    # Python's own way out, for the handlers that stop loader processes, but for taking apart every
    # module, which copies the memory shared with the parent.
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
