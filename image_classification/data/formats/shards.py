"""What the packed formats share: find the shards, scan them, and name the classes.

Scanning takes minutes, so the index is cached in a file next to the shards, or in the cache folder
if they are read-only. The file is valid until the size or modification time of a shard changes. An
invalid or damaged file is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from image_classification.core.errors import DataError
from image_classification.core.files import replacement_file
from image_classification.data.formats.index import Columns, Int64s, Names, ShardIndex
from image_classification.data.tools.demo import cache_root

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation")}
"""Names of the files and folders of a split."""

MANIFEST = "pack.json"
CLASSES_FILE = "classes.json"
_CLASS_LISTS = ("synset.txt", "labels.txt")
_BLOCK_BYTES = 4096
_MAX_CLASSES = 1 << 20
_CACHE_VERSION = 1
_COLUMN_TYPES: dict[str, type] = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "number": np.int64,
    "labels": np.int64,
    "text": np.uint8,
    "ends": np.int64,
}

Scanned = tuple[Columns, dict[str, str]]
"""Columns of a `ShardIndex`, and class name by label."""


class ShardImage(NamedTuple):
    """One image in a shard.

    offset, length: bytes. label: from 0. number: position of its record in the shard. member: its
    name inside the shard, class_name: its class; both empty if unknown.
    """

    offset: int
    length: int
    label: int
    number: int
    member: bytes
    class_name: str


class ShardReader:
    """Reads a shard that is being scanned: small pieces are read, image contents are skipped."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._descriptor = descriptor
        self._start = 0
        self._block = b""

    def at(self, position: int, count: int) -> bytes:
        """Return ``count`` bytes starting at ``position``.

        Raises:
            DataError: the shard ends before that.
        """
        begin = position - self._start
        if begin < 0 or begin + count > len(self._block):
            self._block = os.pread(self._descriptor, max(count, _BLOCK_BYTES), position)
            self._start, begin = position, 0
            if len(self._block) < count:
                raise self.damaged(position, "it ends inside a record")
        return self._block[begin : begin + count]

    def damaged(self, position: int, why: str) -> DataError:
        """Return the error for a shard that does not follow its format."""
        return DataError(
            f"shard {self.path} is damaged at byte {position}: {why}: fetch or pack it again"
        )


@dataclass(frozen=True)
class ShardFormat:
    """A packed format.

    pattern: regular expression of a shard's file name where all splits share a folder, with
    ``{split}`` for the split's names. within: the same inside a folder of only this split. scan:
    yields the images of one shard. complete: raises DataError if shards are missing.
    """

    name: str
    pattern: str
    scan: Callable[[ShardReader], Iterator[ShardImage]]
    within: str = r"(?!)"
    index_class: type[ShardIndex] = ShardIndex
    complete: Callable[[Path, tuple[str, ...]], None] | None = None

    def find(self, root: Path, split: str) -> tuple[str, ...]:
        """Return the split's shards as sorted paths below ``root``; empty if there are none."""
        names = SPLIT_NAMES[split]
        pattern = self.pattern.format(split=f"(?:{'|'.join(names)})")
        sets = [_matching(root, "", pattern)]
        sets += [_matching(root, f"{name}/", f"{pattern}|{self.within}") for name in names]
        sets = [shards for shards in sets if shards]
        if len(sets) > 1:
            raise DataError(
                f"{root} has {split} shards in several places ("
                f"{', '.join(shards[0] for shards in sets)}): keep one set of them"
            )
        return tuple(sets[0]) if sets else ()


def _matching(root: Path, folder: str, pattern: str) -> list[str]:
    try:
        names = os.listdir(root / folder)
    except OSError:
        return []
    found = (folder + name for name in names if re.fullmatch(pattern, name))
    return sorted(path for path in found if (root / path).is_file())


def open_shards(
    shard_format: ShardFormat, root: Path, split: str, num_classes: int | None
) -> ShardIndex:
    """Index ``split`` of the packed data set at ``root``.

    Class names come from ``classes.json`` (written by `image_classification.data.tools.pack`),
    ``synset.txt`` or ``labels.txt`` in ``root``; else from the synsets in the records; a class
    without one is called by its number. num_classes: of the model; None accepts any number.

    Raises:
        DataError: shards are missing or damaged, or the classes are not the model's.
    """
    shards = shard_format.find(root, split)
    if not shards:
        raise DataError(f"{root} has no {split} shards of format {shard_format.name}")
    if shard_format.complete is not None:
        shard_format.complete(root, shards)
    signature = _signature(shard_format.name, root, shards)
    scanned = _load_cached(root, split, signature)
    if scanned is None:
        scanned = _scan(shard_format, root, shards)
        _save_cache(root, split, signature, scanned)
    columns, class_names = scanned
    num_images = len(columns["labels"])
    if num_images == 0:
        raise DataError(f"the {split} shards of {root} hold no image: pack them again")
    _check_manifest(root, split, shards, num_images)
    per_image: Any = {name: columns[name] for name in shard_format.index_class.per_image}
    classes, unnamed = _classes(root, split, columns["labels"], class_names, num_classes)
    return shard_format.index_class(
        root=root,
        split=split,
        classes=classes,
        unnamed=unnamed,
        names=Names(columns["text"], columns["ends"]) if len(columns["ends"]) else None,
        shards=shards,
        **per_image,
    )


def _scan(shard_format: ShardFormat, root: Path, shards: tuple[str, ...]) -> Scanned:
    rows: list[Int64s] = []
    members: list[bytes] = []
    class_names: dict[str, str] = {}
    for position, shard in enumerate(shards):
        numbers: list[tuple[int, int, int, int, int]] = []
        for image in _scan_shard(shard_format, root / shard):
            numbers.append((position, image.offset, image.length, image.number, image.label))
            if image.member:
                members.append(image.member)
            if image.class_name:
                known = class_names.setdefault(str(image.label), image.class_name)
                if known != image.class_name:
                    raise DataError(
                        f"shard {root / shard} calls class {image.label} {image.class_name}, "
                        f"others {known}: the shards are not of one data set"
                    )
        rows.append(np.array(numbers, dtype=np.int64).reshape(-1, 5))
    names = Names.of(members)
    values = [*np.concatenate(rows).T, names.text, names.ends]
    columns = {
        name: column.astype(kind)  # a copy, so that columns do not share the table's memory
        for (name, kind), column in zip(_COLUMN_TYPES.items(), values, strict=True)
    }
    return columns, class_names


def _scan_shard(shard_format: ShardFormat, path: Path) -> Iterator[ShardImage]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            reader = ShardReader(path, descriptor, os.fstat(descriptor).st_size)
            for image in shard_format.scan(reader):
                if not 0 <= image.label < _MAX_CLASSES:
                    raise reader.damaged(
                        image.offset, f"record {image.number} has a label that is not a class"
                    )
                yield image
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read shard {path}: {error.strerror}: check its permissions and its mount"
    )


def _signature(layout: str, root: Path, shards: tuple[str, ...]) -> str:
    """Return the names, sizes and modification times of ``shards``, as JSON."""
    files: list[tuple[str, int, int]] = []
    for shard in shards:
        for name in (shard, f"{shard.removesuffix('.rec')}.idx"):  # RecordIO's order of images
            try:
                status = os.stat(root / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(root / name, error) from error
            files.append((name, status.st_size, status.st_mtime_ns))
    return json.dumps([_CACHE_VERSION, layout, files])


def _cache_paths(root: Path, split: str) -> list[Path]:
    paths = [root / f".{split}.index.npz"]
    try:
        digest = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
        paths.append(cache_root() / "indexes" / f"{digest}-{split}.npz")
    except DataError:  # no home folder
        pass
    return paths


def _load_cached(root: Path, split: str, signature: str) -> Scanned | None:
    files = json.loads(signature)[2]
    sizes = np.array([size for name, size, _ in files if name[-4:] != ".idx"], dtype=np.int64)
    for path in _cache_paths(root, split):
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                header = json.loads(file["said"].tobytes())
                columns = {name: file[name] for name in _COLUMN_TYPES}
                if header["signature"] == signature and _is_consistent(columns, sizes):
                    return columns, header["class_names"]
        except Exception:  # damaged in whatever way: the shards are scanned again
            continue
    return None


def _is_consistent(columns: Columns, sizes: Int64s) -> bool:
    """Return whether the columns fit one another and the shards; the file is not trusted."""
    if any(columns[name].dtype != kind for name, kind in _COLUMN_TYPES.items()):
        return False
    *per_image, text, ends = columns.values()
    shard, offset, length, _, labels = per_image
    count = len(labels)
    if any(a.shape != (count,) for a in per_image) or ends.shape not in ((0,), (count,)):
        return False
    if count == 0:
        return True
    if len(ends) and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != len(text)):
        return False
    if shard.min() < 0 or shard.max() >= len(sizes) or labels.min() < 0:
        return False
    fits = (offset >= 0) & (length > 0) & (offset <= sizes[shard] - length)
    return bool(fits.all())


def _save_cache(root: Path, split: str, signature: str, scanned: Scanned) -> None:
    """Write the index to the first place that is writable; do nothing if there is none."""
    columns, class_names = scanned
    header = json.dumps({"signature": signature, "class_names": class_names}).encode()
    content: Columns = {"said": np.frombuffer(header, dtype=np.uint8), **columns}
    for path in _cache_paths(root, split):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacement_file(path) as file:
                np.savez(file, **content)  # type: ignore[arg-type]
        except OSError:
            continue
        return


def _check_manifest(root: Path, split: str, shards: tuple[str, ...], num_images: int) -> None:
    """Compare with the manifest of `image_classification.data.tools.pack`, if there is one."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest["splits"][split]
        missing = sorted(set(expected["shards"]) - set(shards))
        wanted = int(expected["images"])
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(root / MANIFEST, error) from error
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


def named_classes(root: Path) -> tuple[str, ...] | None:
    """Return the class names listed in a packed data set; None if it has no such list.

    Raises:
        DataError: the list cannot be read, or names a class twice.
    """
    names = (CLASSES_FILE, *_CLASS_LISTS)
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == CLASSES_FILE:
            classes = json.loads(text)
        else:  # lines such as "n01440764 tench, Tinca tinca", in the order of the labels
            classes = [line.split()[0] for line in text.splitlines() if line.strip()]
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise ValueError("no list of names")
        if len(set(classes)) != len(classes):
            raise ValueError("a class is named twice")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}: check its permissions") from error
    except ValueError as error:
        raise DataError(f"{path} is not a list of class names: correct or remove it") from error
    return tuple(classes)


def check_count(where: Path, count: int, num_classes: int, what: str = "classes") -> None:
    """Raise DataError if the number of classes is not the model's."""
    if count != num_classes:
        raise DataError(
            f"{where} has {count} {what}, the model has {num_classes} classes: give "
            f"--num_classes {count}, or the data set the model is for"
        )


def _classes(
    root: Path, split: str, labels: Int64s, class_names: dict[str, str], num_classes: int | None
) -> tuple[tuple[str, ...], frozenset[int]]:
    """Return the class names, and the labels whose names are only numbers."""
    min_classes = int(labels.max()) + 1
    listed = named_classes(root)
    if listed is not None:
        if min_classes > len(listed):
            raise DataError(
                f"the {split} shards of {root} have label {min_classes - 1}, its list of classes "
                f"has {len(listed)} names: the list is of another data set"
            )
        check_count(root, len(listed), len(listed) if num_classes is None else num_classes)
        return listed, frozenset()
    count = min_classes if num_classes is None else num_classes
    # A small validation set need not have images of the last class.
    if min_classes > count or split == "train":
        check_count(root, min_classes, count)
    unnamed = frozenset(label for label in range(count) if str(label) not in class_names)
    if unnamed and split == "train":  # all or none, as the sample order of a resumed run needs
        unnamed = frozenset(range(count))
    names = (
        f"{label:04d}" if label in unnamed else class_names[str(label)] for label in range(count)
    )
    return tuple(names), unnamed
