"""Files of a run's folder: grown by whole lines, or written at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from image_classification.core.errors import WorkspaceError


def unwritable(path: Path, error: OSError) -> WorkspaceError:
    """Word the error for a file that cannot be written."""
    return WorkspaceError(
        f"cannot write {path}: {error.strerror or error}; free space or choose another --workspace"
    )


class LineFile:
    """A text file that grows by whole lines, each written at once; raises WorkspaceError."""

    def __init__(self, path: Path, *, append: bool) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if append:
                _drop_torn_line(path)
            # Unbuffered: after a full disk nothing is left over to be written at a bad moment.
            self._file = path.open("ab" if append else "wb", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error

    def write(self, line: str) -> None:
        """Append ``line`` and its line end."""
        rest = (line + "\n").encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise unwritable(self._path, error) from error

    def close(self) -> None:
        """Close the file; may be called twice."""
        try:
            self._file.close()
        except OSError as error:
            raise unwritable(self._path, error) from error


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its line end, which a killed process may leave."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def write_atomically(path: Path, content: str) -> None:
    """Write beside ``path`` and rename, so that a reader never sees half a file.

    Raises:
        WorkspaceError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise unwritable(path, error) from error
