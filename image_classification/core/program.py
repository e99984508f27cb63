"""How the program was started, and its standard output, which may fail."""

from __future__ import annotations

import io
import itertools
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image_classification.core.errors import WorkspaceError
from image_classification.core.host import container_kind, read_mounts


def command(verb: str) -> str:
    """Return the command for ``verb``, in the way this process was started."""
    program = Path(sys.argv[0]).name
    if program == "image-classification":
        return f"{program} {verb}"
    if verb == "launch" and program != "__main__.py":
        return "launch.py"
    return f"python -m image_classification {verb}"


def launch_words() -> tuple[str, ...]:
    """Return what follows ``python`` to start ``launch`` again from the same folder."""
    if Path(sys.argv[0]).name in ("image-classification", "__main__.py"):
        return ("-m", "image_classification", "launch")
    return (sys.argv[0],)


def whole_command() -> str:
    """Return the command line of this process, to be pasted into a shell."""
    program = Path(sys.argv[0]).name
    if program == "__main__.py":
        words = ["python", "-m", "image_classification"]
    else:
        words = ["python", sys.argv[0]] if program.endswith(".py") else [program]
    return shlex.join([*words, *sys.argv[1:]])


def resume_command(folder: str) -> str:
    """Return the command line of this process with what continues the run in ``folder``."""
    words = sys.argv[2:] if sys.argv[1:2] == ["launch"] else sys.argv[1:]
    if ("--from", folder) in itertools.pairwise(words):
        return next_command("launch", *words)
    if not any(word.partition("=")[0] == "--workspace" for word in words):
        words += ["--workspace", folder]
    if words[-2:] != ["--resume", "auto"]:  # the last --resume counts
        words += ["--resume", "auto"]
    return next_command("launch", *words)


def next_command(verb: str, *arguments: str) -> str:
    """Return a whole command of ``verb``, to be pasted into a shell in the present folder.

    It starts the same program as this process, with the same Python.
    """
    program = Path(sys.argv[0])
    if not program.name.endswith(".py"):
        return shlex.join([program.name, verb, *arguments])
    words, path = [_python()], ""
    if program.name == "__main__.py":
        words += ["-m", "image_classification", verb]
    elif verb == "launch":
        words.append(min(os.path.relpath(program), os.path.abspath(program), key=len))
    else:
        # launch.py finds the package beside itself.
        if program.parent.resolve() != Path.cwd():
            path = f"PYTHONPATH={shlex.quote(os.path.abspath(program.parent))} "
        words += ["-m", "image_classification", verb]
    return path + shlex.join([*words, *arguments])


def _python() -> str:
    """Return the shortest name under which the shell finds this Python."""
    folder = os.path.dirname(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and os.path.dirname(found) == folder:
            return name
    return sys.executable


def open_page(page: Path) -> str:
    """Show an HTML file in the browser; return a line that says so, or why not.

    The browser is that of the variable ``BROWSER``, or the desktop's.
    """
    import webbrowser

    url, by_hand = page.resolve().as_uri(), f"open it yourself: {page}"
    if not os.environ.get("BROWSER"):
        if container_kind(os.environ, read_mounts()):
            return f"--open: no browser in a container; {by_hand}"
        desktop = sys.platform in ("darwin", "win32") or any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
        )
        if not desktop:
            return f"--open: no display here; {by_hand}"
    if webbrowser.open(url):
        return f"opened {page}"
    return f"--open: the browser did not start; {by_hand}"


def mute_stdout() -> None:
    """Redirect standard output to /dev/null, so that buffered text is dropped without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def show(text: str) -> None:
    """Print ``text`` at once. Raises WorkspaceError, or BrokenPipeError if the reader has ended."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        mute_stdout()
        raise WorkspaceError(
            f"cannot write to standard output: {error.strerror}: send it elsewhere"
        ) from error


@contextmanager
def shown_while(text: str) -> Iterator[None]:
    """Show ``text`` on the terminal during a block; nothing elsewhere.

    Of the processes of a run only the first rank shows it.
    """
    first = os.environ.get("RANK", "0") == "0"
    visible = first and sys.stdout is not None and sys.stdout.isatty()
    if visible:
        print(text, end="\r", flush=True)
    try:
        yield
    finally:
        if visible:
            print(" " * len(text), end="\r", flush=True)


class LastingStdout(io.TextIOBase):
    """Standard output that ignores errors: a run goes on, as its records are also in files."""

    def __init__(self) -> None:
        # A live display replaces sys.stdout while it is active.
        self._stream = sys.stdout

    def write(self, text: str) -> int:
        """Write; after the first error, do nothing."""
        try:
            return self._stream.write(text)
        except OSError:
            mute_stdout()
            return len(text)

    def flush(self) -> None:
        """Flush; after the first error, do nothing."""
        try:
            self._stream.flush()
        except OSError:
            mute_stdout()

    def isatty(self) -> bool:
        """Return whether standard output is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of standard output."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of standard output."""
        return self._stream.encoding
