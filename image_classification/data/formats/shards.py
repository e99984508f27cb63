"""What the packed formats share: finding the shards, going through them, naming the classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.data.formats import index_cache as kept_index
from image_classification.data.formats.index import Names, ShardIndex
from image_classification.data.formats.index_cache import Columns, Kept, unreadable

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation")}
"""What files and folders of a split are called."""

_BLOCK_BYTES = 4096
_MOST_CLASSES = 1 << 20


class Found(NamedTuple):
    """One image in a shard. offset, length: bytes; label: from 0; class_name: "" if unknown."""

    offset: int
    length: int
    label: int
    number: int
    member: bytes
    class_name: str


class Window:
    """A shard being gone through: small pieces are read, large ones passed over."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._descriptor = descriptor
        self._start = 0
        self._block = b""

    def at(self, position: int, count: int) -> bytes:
        """Return the ``count`` bytes from ``position`` on.

        Raises:
            DataError: they reach beyond the shard's end.
        """
        if count < 0 or position + count > self.size_bytes:
            raise self.damaged(position, "it ends inside a record")
        begin = position - self._start
        if begin < 0 or begin + count > len(self._block):
            self._block = os.pread(self._descriptor, max(count, _BLOCK_BYTES), position)
            self._start, begin = position, 0
            if len(self._block) < count:
                raise self.damaged(position, "it ends inside a record")
        return self._block[begin : begin + count]

    def damaged(self, position: int, why: str) -> DataError:
        """Return the error for a shard that is not as its format asks."""
        return DataError(
            f"shard {self.path} is damaged at byte {position}: {why}: fetch or pack it again"
        )


@dataclass(frozen=True)
class ShardFormat:
    """A packed format.

    pattern: of a shard's file name beside the other splits' shards, with ``{split}`` for the
    split's names. within: the same inside a folder of the split's own. scan: goes through one
    shard. complete: raises DataError if shards, given by name, are missing.
    """

    name: str
    pattern: str
    within: str
    scan: Callable[[Window], Iterator[Found]]
    index_class: type[ShardIndex] = ShardIndex
    complete: Callable[[Path, tuple[str, ...]], None] | None = None

    def find(self, root: Path, split: str) -> tuple[str, ...]:
        """Return the split's shards as sorted paths below ``root``; none where there are none."""
        names = SPLIT_NAMES[split]
        beside = self.pattern.format(split=f"(?:{'|'.join(names)})")
        places = {"": _matching(root, beside)}
        for folder in names:
            inside = f"(?:{beside})|(?:{self.within})"
            places[folder] = [f"{folder}/{n}" for n in _matching(root / folder, inside)]
        filled = {place: found for place, found in places.items() if found}
        if len(filled) > 1:
            raise DataError(
                f"{root} has {split} shards in several places ("
                f"{', '.join(found[0] for found in filled.values())}): keep one set of them"
            )
        return tuple(next(iter(filled.values()), ()))


def _matching(folder: Path, pattern: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    wanted = re.compile(pattern)
    return sorted(n for n in names if wanted.fullmatch(n) and (folder / n).is_file())


def open_shards(
    shard_format: ShardFormat, root: Path, split: str, num_classes: int | None
) -> ShardIndex:
    """Index ``split`` of the packed data set at ``root``.

    Class names are those of ``classes.json`` (as `image_classification.data.tools.pack` writes it),
    ``synset.txt`` or ``labels.txt`` in ``root``; else the synsets in the records, if every class
    has one; else numbers. num_classes: the model's; None takes the classes that are there.

    Raises:
        DataError: shards are missing or damaged, or the classes are not the model's.
    """
    shards = shard_format.find(root, split)
    if not shards:
        raise DataError(f"{root} has no {split} shards of format {shard_format.name}")
    if shard_format.complete is not None:
        shard_format.complete(root, shards)
    signature = kept_index.signature_of(shard_format.name, root, shards)
    kept = kept_index.load(root, split, signature)
    if kept is None:
        kept = _scan(shard_format, root, shards)
        kept_index.keep(root, split, signature, kept)
    columns, class_names = kept
    num_images = len(columns["labels"])
    if num_images == 0:
        raise DataError(f"the {split} shards of {root} hold no image: pack them again")
    _check_manifest(root, split, shards, num_images)
    members = Names(columns["text"], columns["ends"]) if len(columns["ends"]) else None
    return shard_format.index_class(
        root=root,
        split=split,
        classes=_classes(root, split, columns["labels"], class_names, num_classes),
        labels=columns["labels"],
        shards=shards,
        shard=columns["shard"],
        offset=columns["offset"],
        length=columns["length"],
        number=columns["number"],
        members=members,
    )


def _scan(shard_format: ShardFormat, root: Path, shards: tuple[str, ...]) -> Kept:
    rows: list[npt.NDArray[np.int64]] = []
    members: list[bytes] = []
    class_names: dict[str, str] = {}
    for position, shard in enumerate(shards):
        numbers: list[tuple[int, int, int, int, int]] = []
        for found in _scan_one(shard_format, root / shard):
            numbers.append((position, found.offset, found.length, found.number, found.label))
            if found.member:
                members.append(found.member)
            if found.class_name:
                known = class_names.setdefault(str(found.label), found.class_name)
                if known != found.class_name:
                    raise DataError(
                        f"shard {root / shard} calls class {found.label} {found.class_name}, "
                        f"others {known}: the shards are not of one data set"
                    )
        rows.append(np.array(numbers, dtype=np.int64).reshape(-1, 5))
    shard, offset, length, number, labels = (c.copy() for c in np.concatenate(rows).T)
    names = Names.of(members)
    columns: Columns = {
        "shard": shard.astype(np.int32),
        "offset": offset,
        "length": length,
        "number": number,
        "labels": labels,
        "text": names.text,
        "ends": names.ends,
    }
    return columns, class_names


def _scan_one(shard_format: ShardFormat, path: Path) -> Iterator[Found]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            window = Window(path, descriptor, os.fstat(descriptor).st_size)
            for found in shard_format.scan(window):
                if not 0 <= found.label < _MOST_CLASSES:
                    raise window.damaged(
                        found.offset, f"record {found.number} has a label that is no class"
                    )
                yield found
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error


def _check_manifest(root: Path, split: str, shards: tuple[str, ...], num_images: int) -> None:
    """Compare with what `image_classification.data.tools.pack` says it wrote, where it did."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest["splits"][split]
        missing = sorted(set(expected["shards"]) - set(shards))
        wanted = int(expected["images"])
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(root / MANIFEST, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / MANIFEST} is damaged: pack the data set again") from error
    if missing:
        raise DataError(
            f"{root} lacks {len(missing)} of the {len(expected['shards'])} {split} shards it was "
            f"packed into, such as {missing[0]}: fetch or pack it again"
        )
    if num_images != wanted:
        raise DataError(
            f"the {split} shards of {root} hold {num_images} images, {wanted} were packed: fetch "
            f"or pack it again"
        )


MANIFEST = "pack.json"
CLASSES_FILE = "classes.json"
_NAME_LISTS = ("synset.txt", "labels.txt")


def named_classes(root: Path) -> tuple[str, ...] | None:
    """Return the class names a packed data set comes with; None where it has no list of them.

    Raises:
        DataError: the list cannot be read, or names a class twice.
    """
    path = root / CLASSES_FILE
    try:
        for name in (CLASSES_FILE, *_NAME_LISTS):
            path = root / name
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            if name == CLASSES_FILE:
                classes = json.loads(text)
            else:  # "n01440764 tench, Tinca tinca" a line, in the order of the labels
                classes = [line.split()[0] for line in text.splitlines() if line.strip()]
            if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
                raise ValueError("no list of names")
            if len(set(classes)) != len(classes):
                raise ValueError("a class is named twice")
            return tuple(classes)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}: check its permissions") from error
    except ValueError as error:
        raise DataError(f"{path} is no list of class names: mend or remove it") from error
    return None


def check_count(where: Path, count: int, num_classes: int, what: str = "classes") -> None:
    """Compare the number of classes with the model's.

    Raises:
        DataError: they differ.
    """
    if count != num_classes:
        raise DataError(
            f"{where} has {count} {what}, the model has {num_classes} classes: give "
            f"--num_classes {count}, or the data set the model is for"
        )


def _classes(
    root: Path,
    split: str,
    labels: npt.NDArray[np.int64],
    class_names: dict[str, str],
    num_classes: int | None,
) -> tuple[str, ...]:
    least = int(labels.max()) + 1
    named = named_classes(root)
    if named is not None:
        if least > len(named):
            raise DataError(
                f"the {split} shards of {root} have label {least - 1}, its list of classes has "
                f"{len(named)} names: the list is another data set's"
            )
        check_count(root, len(named), len(named) if num_classes is None else num_classes)
        return named
    count = least if num_classes is None else num_classes
    # A small validation set need not have the last class.
    if least > count or split == "train":
        check_count(root, least, count)
    if all(str(label) in class_names for label in range(count)):
        return tuple(class_names[str(label)] for label in range(count))
    return tuple(f"{label:04d}" for label in range(count))
