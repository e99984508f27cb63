"""Files that are either wholly there or not there at all."""

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
