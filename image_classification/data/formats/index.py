"""The images of one split, whatever the format: how many, of which class, and their bytes.

An index pickles, and reads in any process and from any thread: descriptors are opened where they
are used. Its arrays are plain columns, so that `image_classification.data.loaders.decode` can put
them in shared memory (1.28 million paths take some 40 MB).
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

OPEN_FILES = 64
"""Shards a process keeps open; its limit is often 1,024 descriptors."""

AnyIndex = TypeVar("AnyIndex", bound="Index")


class VanishedError(DataError):
    """The data set itself has gone, or changed, since it was indexed: no image's own fault."""


@dataclass(frozen=True)
class Names:
    """Texts that lie end to end in one array. text: uint8; ends: ``[N]`` int64."""

    text: Bytes
    ends: Int64s

    def __getitem__(self, index: int) -> str:
        start = 0 if index == 0 else int(self.ends[index - 1])
        return os.fsdecode(self.text[start : int(self.ends[index])].tobytes())

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        """Lay ``names`` end to end."""
        # A bytearray's array may be written to, which torch asks of what it is given to share.
        text = np.frombuffer(bytearray(b"".join(names)), dtype=np.uint8)
        return cls(text, np.cumsum([len(name) for name in names], dtype=np.int64))

    def keep(self, rows: Int64s) -> Names:
        """Return the names at ``rows`` alone."""
        starts = np.concatenate([[0], self.ends])[rows]
        content = self.text.tobytes()
        pairs = zip(starts.tolist(), self.ends[rows].tolist(), strict=True)
        return Names.of([content[start:end] for start, end in pairs])


@dataclass(frozen=True)
class Index:
    """One split. root: the data set's folder. labels: ``[N]`` int64, positions in ``classes``.

    num_quarantined: train images left out because the quarantine list names them.
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    labels: Int64s
    num_quarantined: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of image ``index``, unique in the data set: quarantine lists have it."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """Return the name of image ``index`` with the data set's folder, for messages."""
        return os.path.join(self.root, self.name(index))

    def read(self, index: int) -> Bytes:
        """Return the encoded content of image ``index``: ``[bytes]`` uint8, owned by the caller.

        Raises:
            VanishedError: the data set or the shard is gone. DataError: this image cannot be read.
        """
        raise NotImplementedError

    def keep(self: AnyIndex, rows: Int64s) -> AnyIndex:
        """Return the images at ``rows`` alone, in that order."""
        raise NotImplementedError

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return every array by the name that `with_columns` takes it under."""
        raise NotImplementedError

    def with_columns(self: AnyIndex, columns: dict[str, npt.NDArray[Any]]) -> AnyIndex:
        """Return the same index over other arrays (equal ones elsewhere in memory)."""
        raise NotImplementedError

    def without(self: AnyIndex, names: set[str]) -> AnyIndex:
        """Return the index less the images called ``names``; what is no image is passed over."""
        if not names:
            return self
        rows = np.array([i for i in range(len(self)) if self.name(i) not in names], dtype=np.int64)
        if len(rows) == len(self):
            return self
        return replace(self.keep(rows), num_quarantined=len(self) - len(rows))


@dataclass(frozen=True)
class FolderIndex(Index):
    """One file an image, sorted by class and file name. paths: relative to ``root``."""

    paths: Names

    def name(self, index: int) -> str:
        """Return the path below the data set's folder: ``train/cat/1.JPEG``."""
        return self.paths[index]

    def read(self, index: int) -> Bytes:
        """See `Index.read`; an empty file is one that cannot be read."""
        path = self.where(index)
        try:
            content = _whole_file(path)
        except OSError as error:
            if not (self.root / self.split).is_dir():
                raise VanishedError(
                    f"the data set's folder {self.root / self.split} has gone while it was read: "
                    f"check its disk or its mount"
                ) from error
            raise DataError(
                f"cannot read {path}: {error.strerror}: replace or remove the file"
            ) from error
        if content is None:
            raise DataError(f"cannot read {path}: it is not a file: replace or remove it")
        if not len(content):
            raise DataError(f"cannot read {path}: the file is empty: replace or remove it")
        return content

    def keep(self, rows: Int64s) -> FolderIndex:
        """See `Index.keep`."""
        return replace(self, labels=self.labels[rows], paths=self.paths.keep(rows))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """See `Index.columns`."""
        return {"labels": self.labels, "text": self.paths.text, "ends": self.paths.ends}

    def with_columns(self, columns: dict[str, npt.NDArray[Any]]) -> FolderIndex:
        """See `Index.with_columns`."""
        paths = Names(columns["text"], columns["ends"])
        return replace(self, labels=columns["labels"], paths=paths)


class Descriptor:
    """A file opened for reading, closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class OpenFiles:
    """The files a process has open, the least recently used closed first; travels empty."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def get(self, path: str) -> Descriptor:
        """Return ``path`` opened for reading; it stays open for as long as it is referred to."""
        with self._lock:
            file = self._files.pop(path, None)
            if file is None:
                file = Descriptor(path)
            self._files[path] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
            return file


@dataclass(frozen=True)
class ShardIndex(Index):
    """Images inside larger files.

    shards: paths below ``root``; of each image ``shard``: ``[N]`` int32, its position in
    ``shards``; ``offset`` and ``length``: ``[N]`` int64, bytes of the encoded image; ``number``:
    ``[N]`` int64, the record's position in its shard. members: names inside the shard, where the
    format has them.
    """

    shards: tuple[str, ...]
    shard: Int32s
    offset: Int64s
    length: Int64s
    number: Int64s
    members: Names | None = None
    files: OpenFiles = field(default_factory=OpenFiles, repr=False, compare=False)

    def name(self, index: int) -> str:
        """Return ``SHARD:MEMBER``, or ``SHARD#NUMBER`` where members have no names."""
        shard = self.shards[int(self.shard[index])]
        if self.members is not None:
            return f"{shard}:{self.members[index]}"
        return f"{shard}#{int(self.number[index])}"

    def read(self, index: int) -> Bytes:
        """See `Index.read`."""
        length = int(self.length[index])
        content = np.empty(length, dtype=np.uint8)
        path = os.path.join(self.root, self.shards[int(self.shard[index])])
        try:
            file = self.files.get(path)
            got = os.preadv(file.number, [content.data], int(self.offset[index]))
            # A shard deleted or replaced under an open descriptor would be read on from unseen.
            gone = os.fstat(file.number).st_nlink == 0
        except OSError as error:
            raise VanishedError(
                f"cannot read shard {path}: {error.strerror}: check the data set and its mount"
            ) from error
        if gone or got != length:
            how = "was removed or replaced" if gone else "is shorter than when it was indexed"
            raise VanishedError(f"shard {path} {how}: check the data set and start again")
        return content

    def keep(self, rows: Int64s) -> ShardIndex:
        """See `Index.keep`."""
        return replace(
            self,
            labels=self.labels[rows],
            shard=self.shard[rows],
            offset=self.offset[rows],
            length=self.length[rows],
            number=self.number[rows],
            members=None if self.members is None else self.members.keep(rows),
        )

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """See `Index.columns`."""
        names = ("labels", "shard", "offset", "length", "number")
        columns: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in names}
        if self.members is not None:
            columns.update(text=self.members.text, ends=self.members.ends)
        return columns

    def with_columns(self, columns: dict[str, npt.NDArray[Any]]) -> ShardIndex:
        """See `Index.with_columns`."""
        return replace(
            self,
            labels=columns["labels"],
            shard=columns["shard"],
            offset=columns["offset"],
            length=columns["length"],
            number=columns["number"],
            members=Names(columns["text"], columns["ends"]) if "text" in columns else None,
        )


def _whole_file(path: str) -> Bytes | None:
    """Return what is in the file, None if it is no regular one.

    A third of the time of ``np.fromfile``, which the other threads would wait for.
    """
    # Without O_NONBLOCK, opening a named pipe waits for whoever writes to it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            return None
        content = np.empty(status.st_size, dtype=np.uint8)
        got = 0
        while got < len(content):
            count = os.readv(number, [content[got:].data])
            if not count:  # it was cut short since
                break
            got += count
        return content[:got]
    finally:
        os.close(number)
