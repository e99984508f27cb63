"""Standard output that may go away: its reader ends, or the disk its log is on fills up."""

from __future__ import annotations

import io
import os
import sys

from image_classification.core.errors import WorkspaceError


def mute_stdout() -> None:
    """Point standard output nowhere, so that what is still buffered is dropped quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def show(text: str) -> None:
    """Print an answer.

    Raises:
        WorkspaceError: it cannot be written. BrokenPipeError: its reader has gone.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        mute_stdout()
        raise WorkspaceError(
            f"cannot write to standard output: {error.strerror}: send it elsewhere"
        ) from error


class LastingStdout(io.TextIOBase):
    """Standard output for a run, which goes on without it: its records are in files anyway."""

    def __init__(self) -> None:
        # Kept: a live display puts itself in the place of sys.stdout while it is on.
        self._stream = sys.stdout

    def write(self, text: str) -> int:
        """Write, or from the first failure on do nothing."""
        try:
            return self._stream.write(text)
        except OSError:
            mute_stdout()
            return len(text)

    def flush(self) -> None:
        """Flush, or from the first failure on do nothing."""
        try:
            self._stream.flush()
        except OSError:
            mute_stdout()

    def isatty(self) -> bool:
        """Whether standard output is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Standard output's file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Standard output's encoding."""
        return self._stream.encoding
