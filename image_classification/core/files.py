"""Write files whole or not at all, append whole lines, and explain what the system refused."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from image_classification.core.errors import WorkspaceError

_REMEDIES = {
    errno.ENOSPC: "no space left: free some, or give another --workspace",
    errno.EDQUOT: "the disk quota is used up: free some, or give another --workspace",
    errno.EROFS: "the file system is read-only: give another --workspace",
    errno.EACCES: "no permission to write: give another --workspace",
    errno.EPERM: "no permission to write: give another --workspace",
}


@contextmanager
def explained(path: Path, action: str = "write") -> Iterator[None]:
    """Turn an OSError into a WorkspaceError ``cannot ACTION PATH: REASON: REMEDY``."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}: give another --workspace"
        remedy = _REMEDIES.get(error.errno or 0, reason)
        raise WorkspaceError(f"cannot {action} {path}: {remedy}") from error


def sync_folder(path: Path) -> None:
    """Wait until renames in the folder ``path`` are on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing and wait at the end until it is on the disk. Raises OSError."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacement_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` atomically when the block ends without an error.

    Readers see the old or the new content. Raises OSError; the old content is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with synced_file(temporary) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8); see `replacement_file`.

    Raises WorkspaceError.
    """
    with explained(path), replacement_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's content, read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class LineFile:
    """A text file that grows by whole lines, each written at once; raises WorkspaceError."""

    def __init__(self, path: Path, *, append: bool) -> None:
        self._path = path
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if append:
                _drop_incomplete_line(path)
            # Unbuffered: after a full disk no rest is left to be written at a later moment.
            self._file = path.open("ab" if append else "wb", buffering=0)

    def write(self, line: str) -> None:
        """Append ``line`` and its line end."""
        rest = (line + "\n").encode()
        with explained(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the file; may be called twice."""
        with explained(self._path):
            self._file.close()


def _drop_incomplete_line(path: Path) -> None:
    """Cut off a last line without its line end, which a killed process may leave."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
