"""The images of one split, in any format: names, labels, and the encoded bytes of each image.

An index can be pickled, and read in any process and from any thread: files are opened where they
are read. Its arrays are plain columns, which `image_classification.data.loaders.pytorch` puts in
shared memory (1.28 million paths take about 40 MB).
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.core.units import some_of

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

OPEN_FILES = 64
"""Shards a process keeps open; the limit of a process is often 1,024 descriptors."""

AnyIndex = TypeVar("AnyIndex", bound="Index")


class VanishedError(DataError):
    """The whole data set or shard was removed or changed since it was indexed."""


class ClassesError(DataError):
    """The data set's classes cannot be mapped to the model's by their names."""


@dataclass(frozen=True)
class Names:
    """Strings stored end to end in one array. text: uint8; ends: ``[N]`` int64."""

    text: Bytes
    ends: Int64s

    def __getitem__(self, index: int) -> str:
        start = 0 if index == 0 else int(self.ends[index - 1])
        return os.fsdecode(self.text[start : int(self.ends[index])].tobytes())

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        """Store ``names`` end to end."""
        # An array over a bytearray is writable, which torch requires before it shares memory.
        text = np.frombuffer(bytearray(b"".join(names)), dtype=np.uint8)
        return cls(text, np.cumsum([len(name) for name in names], dtype=np.int64))

    def keep(self, rows: Int64s) -> Names:
        """Return only the names at ``rows``."""
        starts = np.concatenate([[0], self.ends])[rows]
        content = self.text.tobytes()
        pairs = zip(starts.tolist(), self.ends[rows].tolist(), strict=True)
        return Names.of([content[start:end] for start, end in pairs])


@dataclass(frozen=True)
class Index:
    """One split of a data set.

    root: the data set's folder. labels: ``[N]`` int64, positions in ``classes``. names: of the
    images, None if the format has none. num_quarantined: train images left out because the
    quarantine list names them. unnamed: labels whose names in ``classes`` are only numbers.
    notes: what the user should know, such as skipped files.
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    labels: Int64s
    names: Names | None
    num_quarantined: int = field(default=0, kw_only=True)
    unnamed: frozenset[int] = field(default=frozenset(), kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    per_image: ClassVar[tuple[str, ...]] = ("labels",)
    """Fields that hold one value per image."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """``classes``; None if the data set does not name them all."""
        return None if self.unnamed else self.classes

    def in_class_order(self: AnyIndex, classes: tuple[str, ...]) -> AnyIndex:
        """Return the index with labels that are positions in ``classes``, a model's class names.

        train must have exactly these classes; val may have some of them. Labels without names are
        kept.

        Raises:
            ClassesError: other classes.
        """
        if self.class_names == classes:
            return self
        note, labels = "", self.labels
        present = np.unique(labels).tolist()
        if self.unnamed.intersection(present):
            if present[-1] >= len(classes):
                raise ClassesError(
                    f"{self.root} has {present[-1] + 1} classes, the model {len(classes)} "
                    f"({some_of(classes)}): give the data set that the model is for"
                )
            note = (
                f"{self.root} does not name its classes: whether its labels are in the model's "
                "order cannot be checked"
            )
        else:
            known = [name for at, name in enumerate(self.classes) if at not in self.unnamed]
            note = self._compare(known, classes)
            position = {name: at for at, name in enumerate(classes)}
            new = np.array([position.get(name, -1) for name in self.classes], dtype=np.int64)
            labels = new[labels]
        notes = (*self.notes, note) if note else self.notes
        return replace(self, classes=classes, labels=labels, unnamed=frozenset(), notes=notes)

    def _compare(self, known: list[str], classes: tuple[str, ...]) -> str:
        """Return what differs between the data set's classes ``known`` and the model's."""
        models, own = set(classes), set(known)
        unknown = [name for name in known if name not in models]
        missing = [name for name in classes if name not in own]
        if unknown:
            raise ClassesError(
                f"{self.root} has other class names than the model: {some_of(unknown)}; the model "
                f"knows {some_of(classes)}: rename the class folders to the model's names, or "
                "fine-tune the model on them with --mode convergence --pretrained-from-file"
            )
        if missing and self.split == "train":
            raise ClassesError(
                f"the train images of {self.root} have other class names than the model: they lack "
                f"{some_of(missing)}: give the data set that the model was trained on"
            )
        notes = []
        if missing:
            notes.append(
                f"{self.root} has {len(known)} of the model's {len(classes)} classes "
                f"({some_of(known)}): the model still chooses among all {len(classes)}"
            )
        at = {name: label for label, name in enumerate(self.classes)}
        moved = [
            f"{name} {at[name]} -> {label}"
            for label, name in enumerate(classes)
            if at.get(name, label) != label
        ]
        if moved:
            notes.append(
                f"the labels of {self.root} were mapped to the model's by class name: "
                f"{some_of(moved)}"
            )
        return "; ".join(notes)

    def name(self, index: int) -> str:
        """Return the name of image ``index``, unique in the data set; used in quarantine lists."""
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
        """Return an index of only the images at ``rows``, in that order."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in self.per_image}
        names = None if self.names is None else self.names.keep(rows)
        return replace(self, **columns, names=names)

    def columns(self) -> Columns:
        """Return every array, under the name that `with_columns` expects."""
        columns: Columns = {name: getattr(self, name) for name in self.per_image}
        if self.names is not None:
            columns.update(text=self.names.text, ends=self.names.ends)
        return columns

    def with_columns(self: AnyIndex, columns: Columns) -> AnyIndex:
        """Return the same index with other arrays (equal ones elsewhere in memory)."""
        values: dict[str, Any] = {name: columns[name] for name in self.per_image}
        names = None if self.names is None else Names(columns["text"], columns["ends"])
        return replace(self, **values, names=names)

    def without(self: AnyIndex, names: set[str]) -> AnyIndex:
        """Return the index without the images called ``names``; unknown names are ignored."""
        if not names:
            return self
        rows = np.array([i for i in range(len(self)) if self.name(i) not in names], dtype=np.int64)
        if len(rows) == len(self):
            return self
        return replace(self.keep(rows), num_quarantined=len(self) - len(rows))


@dataclass(frozen=True)
class FolderIndex(Index):
    """One file per image, sorted by class and file name. names: paths relative to ``root``."""

    def name(self, index: int) -> str:
        """Return the path below the data set's folder: ``train/cat/1.JPEG`` or ``cat/1.JPEG``."""
        assert self.names is not None
        return self.names[index]

    def read(self, index: int) -> Bytes:
        """See `Index.read`; an empty file raises DataError."""
        path = self.where(index)
        try:
            content = _read_file(path)
        except OSError as error:
            folder = self.root / self.name(index).split("/")[0]
            if not folder.is_dir():
                raise VanishedError(
                    f"the data set's folder {folder} has gone while it was read: check its disk "
                    f"or its mount"
                ) from error
            raise DataError(
                f"cannot read {path}: {error.strerror}: replace or remove the file"
            ) from error
        if content is None:
            raise DataError(f"cannot read {path}: it is not a file: replace or remove it")
        if not len(content):
            raise DataError(f"cannot read {path}: the file is empty: replace or remove it")
        return content


class Descriptor:
    """A file opened for reading, closed when the last reference to it is dropped."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class OpenFiles:
    """The files a process has open; the least recently used is closed first. Pickles as empty."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def get(self, path: str) -> Descriptor:
        """Return ``path`` opened for reading; it stays open for as long as it is referenced."""
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

    names: of the members inside the shard, if the format has names. shards: paths below ``root``.
    Per image, ``[N]``: ``shard`` int32, its position in ``shards``; ``offset`` and ``length``
    int64, bytes of the encoded image; ``number`` int64, the record's position in its shard.
    """

    shards: tuple[str, ...]
    shard: Int32s
    offset: Int64s
    length: Int64s
    number: Int64s
    files: OpenFiles = field(default_factory=OpenFiles, repr=False, compare=False)

    per_image: ClassVar[tuple[str, ...]] = ("labels", "shard", "offset", "length", "number")

    def name(self, index: int) -> str:
        """Return ``SHARD:MEMBER``, or ``SHARD#NUMBER`` if members have no names."""
        shard = self.shards[int(self.shard[index])]
        if self.names is not None:
            return f"{shard}:{self.names[index]}"
        return f"{shard}#{int(self.number[index])}"

    def read(self, index: int) -> Bytes:
        """See `Index.read`."""
        length = int(self.length[index])
        content = np.empty(length, dtype=np.uint8)
        path = os.path.join(self.root, self.shards[int(self.shard[index])])
        try:
            file = self.files.get(path)
            num_read = os.preadv(file.number, [content.data], int(self.offset[index]))
            # A deleted or replaced shard could still be read through its open descriptor.
            is_deleted = os.fstat(file.number).st_nlink == 0
        except OSError as error:
            raise VanishedError(
                f"cannot read shard {path}: {error.strerror}: check the data set and its mount"
            ) from error
        if is_deleted or num_read != length:
            how = "was removed or replaced" if is_deleted else "is shorter than when it was indexed"
            raise VanishedError(f"shard {path} {how}: check the data set and start again")
        return content


def _read_file(path: str) -> Bytes | None:
    """Return the content of a regular file, None for anything else.

    It takes a third of the time of ``np.fromfile``, which also holds the GIL.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            return None
        content = np.empty(status.st_size, dtype=np.uint8)
        num_read = 0
        while num_read < len(content):
            count = os.readv(number, [content[num_read:].data])
            if not count:  # the file was truncated meanwhile
                break
            num_read += count
        return content[:num_read]
    finally:
        os.close(number)
