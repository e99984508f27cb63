"""Files that are either wholly there or not there at all.

Files of a run's folder: grown by whole lines, or written at once or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image_classification.core.errors import WorkspaceError

_REMEDIES = {
    errno.ENOSPC: "no space left: free some, or give another --workspace",
    errno.EDQUOT: "the disk quota is used up: free some, or give another --workspace",
    errno.EROFS: "the file system is read-only: give another --workspace",
    errno.EACCES: "no permission to write: give another --workspace",
    errno.EPERM: "no permission to write: give another --workspace",
}


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a WorkspaceError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}: give another --workspace"
        remedy = _REMEDIES.get(error.errno or 0, reason)
        raise WorkspaceError(f"cannot {doing} {path}: {remedy}") from error


def sync_folder(path: Path) -> None:
    """Make a rename in ``path`` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until it is on the disk. Raises OSError."""
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically: readers see the old or the new content.

    Raises OSError; the old content is then still in place.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(beside, data)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's content, read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


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
