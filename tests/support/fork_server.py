"""Forks ``launch.py`` jobs from a process that has its imports done.

Reads one JSON object per line from stdin, ``{"argv", "environ", "out", "err", "script"}``, forks a
process that runs ``launch.py ARGV`` (or ``SCRIPT ARGV``), and answers ``{"pid"}`` on stdout. When
the process has ended it writes ``{"pid", "code"}``; a negative code is a signal's number. Exits at
the end of stdin. ``fork_server.py SCRIPT ARGV`` runs one such job in this process.

Importing torch and torchvision takes 5 s of CPU time, more than the training of a test. So two
kinds of processes that a job starts with ``python …`` are forked as well: the ranks of a launcher,
and the server from which the loader processes start. `continue_as_new_process` gives them what a
new process would have. The jobs draw no plots for their report, which takes another 4 s.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing.util
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import image_classification

LAUNCH = str(Path(__file__).parents[2] / "launch.py")


def main() -> None:
    import_everything()
    if len(sys.argv) > 1:
        run_script(sys.argv[1:])
    signal_read, signal_write = os.pipe()
    os.set_blocking(signal_write, False)
    signal.set_wakeup_fd(signal_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    answer({"ready": True})
    buffered = b""
    while True:
        ready, _, _ = select.select([0, signal_read], [], [])
        if signal_read in ready:
            os.read(signal_read, 512)
            report_ended()
        if 0 in ready:
            received = os.read(0, 65536)
            if not received:
                return
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                fork_job(json.loads(line))


def import_everything() -> None:
    """Import every module that a run may need. None of them starts a thread."""
    for module in pkgutil.walk_packages(image_classification.__path__, "image_classification."):
        with contextlib.suppress(ImportError):  # an optional dependency
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # which optimizers import at their first step
    recorder = importlib.import_module("image_classification.launch.recorder")
    assert callable(recorder.draw_run)
    recorder.draw_run = lambda *arguments: None  # type: ignore[attr-defined]
    handlers = importlib.import_module(
        "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
    )
    assert handlers.Popen is subprocess.Popen
    handlers.Popen = ForkedRank  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = fork_loader_server  # type: ignore[assignment]


def fork_job(job: Mapping[str, Any]) -> None:
    pid = os.fork()
    if pid:
        answer({"pid": pid})
        return
    continue_as_new_process({**os.environ, **job["environ"]})
    os.setsid()
    for fd, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, job["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, fd)
        os.close(opened)
    run_script([job["script"] or LAUNCH, *job["argv"]])


class ForkedRank(subprocess.Popen):  # type: ignore[type-arg]
    """``Popen([sys.executable, "-u", SCRIPT, *ARGV], env=…, start_new_session=True)`` as a fork."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        environ = rest[5]
        self.pid = fork()
        if self.pid == 0:
            continue_as_new_process(environ)
            os.setsid()
            run_script(args[2:])
        self._child_created = True


def fork_loader_server(
    path: str,
    args: Sequence[str],
    passfds: Sequence[int],
    spawn: Callable[..., int] = multiprocessing.util.spawnv_passfds,
) -> int:
    """Replace `multiprocessing.util.spawnv_passfds`: start the loaders' fork server as a fork."""
    if "multiprocessing.forkserver" not in args[-1]:
        return spawn(path, args, passfds)
    pid = fork()
    if pid == 0:
        continue_as_new_process(dict(os.environ), keep=passfds)
        end_after(lambda: exec(args[-1], {}))
    return pid


def fork() -> int:
    sys.stdout.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns about the threads of torch's agent, which the fork does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def continue_as_new_process(environ: Mapping[str, str], keep: Sequence[int] = ()) -> None:
    """Reset what a new process does not inherit: handlers, open files, the environment."""
    gc.freeze()  # no object of the parent may close a file descriptor that is used again
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    start = 3
    for fd in [*sorted(keep), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(start, fd)
        start = fd + 1
    os.environ.clear()
    os.environ.update(environ)


def run_script(argv: Sequence[str]) -> NoReturn:
    """Run ``python ARGV`` and end the process; with networks of $STEM_CHANNELS if it is set."""
    if "STEM_CHANNELS" in os.environ:
        network = importlib.import_module("image_classification.models.resnet")
        assert isinstance(network.STEM_CHANNELS, int)
        network.STEM_CHANNELS = int(os.environ["STEM_CHANNELS"])  # type: ignore[attr-defined]
    sys.argv = [*argv]
    end_after(lambda: runpy.run_path(argv[0], run_name="__main__"))


def end_after(body: Callable[[], object]) -> NoReturn:
    """Call ``body`` and end the process.

    Runs the exit handlers, which stop loader processes, but skips the interpreter's teardown: it
    would copy the memory shared with the parent.
    """
    code = 0
    try:
        body()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        answer({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def answer(content: Mapping[str, Any]) -> None:
    os.write(1, (json.dumps(content) + "\n").encode())


if __name__ == "__main__":
    main()
