"""CRC-32C (Castagnoli), which TFRecord files are sealed with; Python's own zlib has another.

Polynomial 0x82F63B78, reflected, first and last value all ones (RFC 3720, appendix B.4). A CRC is
linear, so long contents are cut into lanes that NumPy takes through the tables side by side.

TFRecord shards in the layout of the TensorFlow sources' ImageNet scripts.

Files ``train-00000-of-01024`` and ``validation-00000-of-00128``; a record is
``uint64 length, uint32 masked crc of it, content, uint32 masked crc of that`` (little-endian,
CRC-32C), its content a serialised ``tf.train.Example`` with ``image/encoded``,
``image/class/label`` (from 1) and ``image/class/synset``. Read here without TensorFlow: an
Example is a map of text to lists, in Protocol Buffers' wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.data.formats.shards import Found, ShardFormat, Window

_POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_LANE_BYTES = 256
_SHORT_BYTES = 512
_MASK_DELTA = 0xA282EAD8

Words = npt.NDArray[np.uint32]


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of ``content``."""
    if len(content) < _SHORT_BYTES:
        table, crc = _table(), _ONES
        for byte in content:
            crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
        return crc ^ _ONES
    # Zeros in front change nothing as long as the register is zero; that it starts with ones is
    # the same as complementing the first four bytes.
    front = -len(content) % _LANE_BYTES
    padded = np.zeros(front + len(content), dtype=np.uint8)
    padded[front:] = np.frombuffer(content, dtype=np.uint8)
    padded[front : front + 4] ^= 255
    words = padded.view("<u4").reshape(-1, _LANE_BYTES // 4)
    crcs: Words = np.zeros(len(words), dtype=np.uint32)
    for column in range(words.shape[1]):
        crcs = _apply(_shift(0), crcs ^ words[:, column])
    level = _LANE_LEVEL
    while len(crcs) > 1:
        if len(crcs) % 2:
            crcs = np.concatenate([np.zeros(1, dtype=np.uint32), crcs])
        crcs = _apply(_shift(level), crcs[0::2]) ^ crcs[1::2]
        level += 1
    return int(crcs[0]) ^ _ONES


def masked_crc32c(content: bytes) -> int:
    """Return the CRC as TFRecord stores it: rotated by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _ONES


_LANE_LEVEL = (_LANE_BYTES // 4).bit_length() - 1


@cache
def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@cache
def _shift(level: int) -> Words:
    """Return what ``4 * 2**level`` zero bytes make of a register: ``[4, 256]``, one row a byte."""
    if level > 0:
        half = _shift(level - 1)
        return _apply(half, half)
    bytes_at = np.arange(256, dtype=np.uint32)
    registers = np.stack([bytes_at << np.uint32(8 * i) for i in range(4)])
    table = np.array(_table(), dtype=np.uint32)
    for _ in range(4):
        registers = table[registers & 255] ^ (registers >> np.uint32(8))
    return registers


def _apply(tables: Words, registers: Words) -> Words:
    moved = tables[0][registers & 255]
    for row in range(1, 4):
        moved = moved ^ tables[row][registers >> np.uint32(8 * row) & 255]
    return np.asarray(moved, dtype=np.uint32)


_HEADER_BYTES = 12
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _INT64_LIST = 1, 3
_SMALL_BYTES = 1024


class _Field(NamedTuple):
    """A field of a message: its content's bytes if delimited, else its value."""

    number: int
    wire_type: int
    start: int
    stop: int
    value: int


def scan(window: Window) -> Iterator[Found]:
    """Go through a shard; lengths are checked against their CRCs, contents passed over."""
    at = number = 0
    while at < window.size_bytes:
        header = window.at(at, _HEADER_BYTES)
        length, crc = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != crc:
            raise window.damaged(at, "no TFRecord begins there (compressed ones are not read)")
        start = at + _HEADER_BYTES
        at = start + length + 4
        if at > window.size_bytes:
            raise window.damaged(start, "it ends inside a record")
        yield _example(window, start, start + length, number)
        number += 1


def write_record(
    file: BinaryIO, content: bytes, label: int, class_name: str, name: str, size: tuple[int, int]
) -> None:
    """Append one image. label: from 0; size: (width, height) in pixels."""
    kind = b"PNG" if content[:4] == b"\x89PNG" else b"JPEG"
    features = {
        "image/height": _int64_feature(size[1]),
        "image/width": _int64_feature(size[0]),
        "image/colorspace": _bytes_feature(b"RGB"),
        "image/channels": _int64_feature(3),
        "image/class/label": _int64_feature(label + 1),
        "image/class/synset": _bytes_feature(class_name.encode()),
        "image/format": _bytes_feature(kind),
        "image/filename": _bytes_feature(name.encode(errors="surrogateescape")),
        "image/encoded": _bytes_feature(content),
    }
    entries = b"".join(
        _delimited(1, _delimited(1, key.encode()) + _delimited(2, feature))
        for key, feature in features.items()
    )
    example = _delimited(1, entries)
    header = struct.pack("<Q", len(example))
    file.write(header + struct.pack("<I", masked_crc32c(header)))
    file.write(example + struct.pack("<I", masked_crc32c(example)))


def _check_complete(root: Path, shards: tuple[str, ...]) -> None:
    present = {int(Path(shard).name.split("-")[1]) for shard in shards}
    of = {int(shard.rsplit("-", 1)[1]) for shard in shards}
    if len(of) > 1:
        raise DataError(
            f"{root} has TFRecord shards of several sets ({shards[0]}, {shards[-1]}): keep one set"
        )
    total = of.pop()
    missing = sorted(set(range(total)) - present)
    if missing:
        stem = shards[0].rsplit("-", 3)[0]
        raise DataError(
            f"{root} lacks {len(missing)} of {total} TFRecord shards, such as "
            f"{stem}-{missing[0]:05d}-of-{total:05d}: fetch them, or pack the data set again"
        )


FORMAT = ShardFormat(
    name="tfrecord",
    pattern=r"{split}-\d{{5}}-of-\d{{5}}",
    within=r"(?!)",
    scan=scan,
    complete=_check_complete,
)


def _example(window: Window, start: int, stop: int, number: int) -> Found:
    encoded: tuple[int, int] | None = None
    label: int | None = None
    synset = ""
    for features in _delimited_fields(window, start, stop, 1):
        for entry in _delimited_fields(window, features.start, features.stop, 1):
            parts = {f.number: f for f in _fields(window, entry.start, entry.stop)}
            key, feature = parts.get(1), parts.get(2)
            if key is None or feature is None or key.stop - key.start > _SMALL_BYTES:
                continue
            name = window.at(key.start, key.stop - key.start)
            if name == b"image/encoded":
                encoded = _one_bytes(window, feature, number)
            elif name == b"image/class/label":
                label = _one_int64(window, feature, number)
            elif name == b"image/class/synset":
                begin, end = _one_bytes(window, feature, number)
                if end - begin > _SMALL_BYTES:
                    raise window.damaged(begin, f"the synset of record {number} is no name")
                synset = window.at(begin, end - begin).decode(errors="replace")
    if encoded is None or label is None or encoded[0] == encoded[1]:
        raise window.damaged(start, f"record {number} has no image/encoded or no image/class/label")
    return Found(encoded[0], encoded[1] - encoded[0], label - 1, number, b"", synset)


def _one_bytes(window: Window, feature: _Field, number: int) -> tuple[int, int]:
    for values in _delimited_fields(window, feature.start, feature.stop, _BYTES_LIST):
        for value in _delimited_fields(window, values.start, values.stop, 1):
            return value.start, value.stop
    raise window.damaged(feature.start, f"record {number} lacks a value that must be bytes")


def _one_int64(window: Window, feature: _Field, number: int) -> int:
    for values in _delimited_fields(window, feature.start, feature.stop, _INT64_LIST):
        for value in _fields(window, values.start, values.stop):
            if value.number == 1 and value.wire_type == _VARINT:
                return _signed(value.value)
            if value.number == 1 and value.wire_type == _DELIMITED:  # packed
                return _signed(_varint(window, value.start, value.stop)[0])
    raise window.damaged(feature.start, f"record {number} lacks a value that must be a number")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _delimited_fields(window: Window, start: int, stop: int, number: int) -> Iterator[_Field]:
    for field in _fields(window, start, stop):
        if field.number == number and field.wire_type == _DELIMITED:
            yield field


def _fields(window: Window, start: int, stop: int) -> Iterator[_Field]:
    at = start
    while at < stop:
        tag, at = _varint(window, at, stop)
        wire_type = tag & 7
        value, begin = 0, at
        if wire_type == _VARINT:
            value, at = _varint(window, at, stop)
        elif wire_type == _DELIMITED:
            length, begin = _varint(window, at, stop)
            at = begin + length
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise window.damaged(at, "it holds no tf.train.Example")
        if at > stop:
            raise window.damaged(begin, "a field reaches beyond its message")
        yield _Field(tag >> 3, wire_type, begin, at, value)


def _varint(window: Window, at: int, stop: int) -> tuple[int, int]:
    """Return the number at ``at`` and where it ends."""
    value = shift = 0
    for byte in window.at(at, min(10, stop - at)):
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise window.damaged(at, "a number does not end")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _delimited(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _DELIMITED) + _encode_varint(len(content)) + content


def _bytes_feature(value: bytes) -> bytes:
    return _delimited(_BYTES_LIST, _delimited(1, value))


def _int64_feature(value: int) -> bytes:
    return _delimited(_INT64_LIST, _delimited(1, _encode_varint(value)))
