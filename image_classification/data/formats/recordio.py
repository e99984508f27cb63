"""MXNet RecordIO: ``train.rec`` and ``val.rec``, each with an optional ``.idx`` of offsets.

A record is ``uint32 0xced7230a, uint32 (part << 29 | length), content``, padded to 4 bytes. Content
that holds the magic number at a multiple of 4 bytes is split there and stored in parts, without
the magic number. An image's content starts with ``uint32 flag, float label, uint64 id, uint64 id2``
(``IfQQ``, little-endian); if flag is n > 0, the label is the first of the n floats that follow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from image_classification.core.errors import DataError
from image_classification.data.formats.index import Bytes, ShardIndex
from image_classification.data.formats.shards import ShardFormat, ShardImage, ShardReader

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_LENGTH_MASK = (1 << 29) - 1
_IMAGE_HEADER = struct.Struct("<IfQQ")
_MAX_LABELS = 1024


@dataclass(frozen=True)
class RecordIndex(ShardIndex):
    """A `ShardIndex` whose offsets and lengths are of whole records, with all their parts."""

    def read(self, index: int) -> Bytes:
        """See `Index.read`."""
        record = super().read(index)
        try:
            content = _join(record)
            flag = _IMAGE_HEADER.unpack_from(content.data)[0]
            image = content[_IMAGE_HEADER.size + 4 * flag :]
        except (struct.error, ValueError) as error:
            raise DataError(
                f"cannot read {self.where(index)}: no RecordIO image is there: pack it again"
            ) from error
        if not len(image):
            raise DataError(f"cannot read {self.where(index)}: the image is empty: pack it again")
        return image


def scan(reader: ShardReader) -> Iterator[ShardImage]:
    """Yield the images of a file, in the order of its ``.idx`` if there is one."""
    records = list(_records(reader))
    order = _order(reader.path.with_suffix(".idx"))
    if order is None:
        yield from records
        return
    by_offset = {image.offset: image for image in records}
    for offset in order:
        if offset not in by_offset:
            raise DataError(
                f"{reader.path.with_suffix('.idx')} is not of {reader.path}: it names byte "
                f"{offset}, where no record begins: remove it, it is not needed"
            )
        yield by_offset[offset]


def write_record(file: BinaryIO, content: bytes, label: int, number: int) -> int:
    """Append image ``number``; return the offset of its record, for the ``.idx``."""
    offset = file.tell()
    record = _IMAGE_HEADER.pack(0, float(label), number, 0) + content
    if len(record) > _LENGTH_MASK:
        raise DataError(f"image {number} has {len(record)} bytes, too many for a RecordIO record")
    cuts = [at for at in _magic_positions(record) if at % 4 == 0]
    starts = [0, *(at + 4 for at in cuts)]
    for i, (start, stop) in enumerate(zip(starts, [*cuts, len(record)], strict=True)):
        part = _MIDDLE if 0 < i < len(cuts) else _LAST if i else _FIRST if cuts else _WHOLE
        file.write(struct.pack("<II", _MAGIC, part << 29 | stop - start))
        file.write(record[start:stop] + bytes(-(stop - start) % 4))
    return offset


FORMAT = ShardFormat(
    name="recordio",
    pattern=r"(?:.*[-_])?{split}\.rec",
    scan=scan,
    index_class=RecordIndex,
)


def _records(reader: ShardReader) -> Iterator[ShardImage]:
    at = number = 0
    while at < reader.size_bytes:
        start = at
        at, part, content, length = _part(reader, start)
        if part not in (_WHOLE, _FIRST):
            raise reader.damaged(start, "a record begins in its middle")
        header_bytes = reader.at(content, _IMAGE_HEADER.size) if length >= 24 else b""
        while part in (_FIRST, _MIDDLE):
            at, part, _, _ = _part(reader, at)
            if part not in (_MIDDLE, _LAST):
                raise reader.damaged(start, "the last part of a record is missing")
        if not header_bytes:
            raise reader.damaged(start, f"record {number} has no image's header")
        flag, label, _, _ = _IMAGE_HEADER.unpack(header_bytes)
        if flag:
            if flag > _MAX_LABELS or length < _IMAGE_HEADER.size + 4 * flag:
                raise reader.damaged(start, f"record {number} has {flag} labels")
            (label,) = struct.unpack("<f", reader.at(content + _IMAGE_HEADER.size, 4))
        if not float(label).is_integer():
            raise reader.damaged(start, f"the label {label} of record {number} is not a class")
        yield ShardImage(start, at - start, int(label), number, b"", "")
        number += 1


def _part(reader: ShardReader, at: int) -> tuple[int, int, int, int]:
    """Return the end of the part at ``at``, its kind, and its content's offset and length."""
    magic, packed = struct.unpack("<II", reader.at(at, 8))
    length = packed & _LENGTH_MASK
    end = at + 8 + length + -length % 4
    if magic != _MAGIC or packed >> 29 > _LAST:
        raise reader.damaged(at, "no RecordIO record begins there")
    if end > reader.size_bytes:
        raise reader.damaged(at, "it ends inside a record")
    return end, packed >> 29, at + 8, length


def _join(record: Bytes) -> Bytes:
    """Return the content of a record: a view of it, or its parts joined by the magic number."""
    parts: list[Bytes] = []
    at = 0
    while at < len(record):
        magic, packed = struct.unpack_from("<II", record.data, at)
        length = packed & _LENGTH_MASK
        if magic != _MAGIC or at + 8 + length > len(record):
            raise ValueError("no record")
        parts.append(record[at + 8 : at + 8 + length])
        at += 8 + length + -length % 4
    if len(parts) == 1:
        return parts[0]
    magic_bytes = np.frombuffer(_MAGIC_BYTES, dtype=np.uint8)
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [magic_bytes, part]
    return np.concatenate(joined)


def _magic_positions(record: bytes) -> Iterator[int]:
    at = record.find(_MAGIC_BYTES)
    while at >= 0:
        yield at
        at = record.find(_MAGIC_BYTES, at + 1)


def _order(path: Path) -> list[int] | None:
    """Return the offsets of a ``.idx``: per line a key, a tab and an offset. None if absent."""
    try:
        if os.path.getsize(path) == 0:
            return None
        with open(path, encoding="ascii") as file:
            return [int(line.split("\t")[1]) for line in file if line.strip()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}: check its permissions") from error
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged: remove it, it is not needed") from error
