"""TFRecord shards in the layout of the TensorFlow project's ImageNet scripts.

Files are ``train-00000-of-01024`` and ``validation-00000-of-00128``. A record is ``uint64 length,
uint32 masked CRC-32C of the length, content, uint32 masked CRC-32C of the content``, little-endian.
The content is a serialized ``tf.train.Example`` with ``image/encoded``, ``image/class/label`` (from
1) and ``image/class/synset``. It is read without TensorFlow: an Example is a map of strings to
lists, in the Protocol Buffers wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c

from image_classification.core.errors import DataError
from image_classification.data.formats.shards import ShardFormat, ShardImage, ShardReader

_MASK_DELTA = 0xA282EAD8
_HEADER_BYTES = 12
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _INT64_LIST = 1, 3
_SMALL_BYTES = 1024


def masked_crc32c(content: bytes) -> int:
    """Return the CRC-32C as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


class _Field(NamedTuple):
    """A field of a message: the span of its content if delimited, else its value."""

    number: int
    wire_type: int
    start: int
    stop: int
    value: int


def scan(reader: ShardReader) -> Iterator[ShardImage]:
    """Yield the images of a shard; only the lengths are checked against their CRCs."""
    at = number = 0
    while at < reader.size_bytes:
        header = reader.at(at, _HEADER_BYTES)
        length, crc = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != crc:
            raise reader.damaged(at, "no TFRecord begins there (compressed ones are not read)")
        start = at + _HEADER_BYTES
        at = start + length + 4
        if at > reader.size_bytes:
            raise reader.damaged(start, "it ends inside a record")
        yield _example(reader, start, start + length, number)
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
    totals = {int(shard.rsplit("-", 1)[1]) for shard in shards}
    if len(totals) > 1:
        raise DataError(
            f"{root} has TFRecord shards of several sets ({shards[0]}, {shards[-1]}): keep one set"
        )
    total = totals.pop()
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
    scan=scan,
    complete=_check_complete,
)


def _example(reader: ShardReader, start: int, stop: int, number: int) -> ShardImage:
    encoded: tuple[int, int] | None = None
    label: int | None = None
    synset = ""
    for features in _delimited_fields(reader, start, stop, 1):
        for entry in _delimited_fields(reader, features.start, features.stop, 1):
            parts = {f.number: f for f in _fields(reader, entry.start, entry.stop)}
            key, feature = parts.get(1), parts.get(2)
            if key is None or feature is None or key.stop - key.start > _SMALL_BYTES:
                continue
            name = reader.at(key.start, key.stop - key.start)
            if name == b"image/encoded":
                encoded = _one_bytes(reader, feature, number)
            elif name == b"image/class/label":
                label = _one_int64(reader, feature, number)
            elif name == b"image/class/synset":
                begin, end = _one_bytes(reader, feature, number)
                if end - begin > _SMALL_BYTES:
                    raise reader.damaged(begin, f"the synset of record {number} is not a name")
                synset = reader.at(begin, end - begin).decode(errors="replace")
    if encoded is None or label is None or encoded[0] == encoded[1]:
        raise reader.damaged(start, f"record {number} has no image/encoded or no image/class/label")
    return ShardImage(encoded[0], encoded[1] - encoded[0], label - 1, number, b"", synset)


def _one_bytes(reader: ShardReader, feature: _Field, number: int) -> tuple[int, int]:
    for values in _delimited_fields(reader, feature.start, feature.stop, _BYTES_LIST):
        for value in _delimited_fields(reader, values.start, values.stop, 1):
            return value.start, value.stop
    raise reader.damaged(feature.start, f"record {number} lacks a value that must be bytes")


def _one_int64(reader: ShardReader, feature: _Field, number: int) -> int:
    for values in _delimited_fields(reader, feature.start, feature.stop, _INT64_LIST):
        for value in _fields(reader, values.start, values.stop):
            if value.number == 1 and value.wire_type == _VARINT:
                return _signed(value.value)
            if value.number == 1 and value.wire_type == _DELIMITED:  # packed
                return _signed(_varint(reader, value.start, value.stop)[0])
    raise reader.damaged(feature.start, f"record {number} lacks a value that must be a number")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _delimited_fields(reader: ShardReader, start: int, stop: int, number: int) -> Iterator[_Field]:
    for field in _fields(reader, start, stop):
        if field.number == number and field.wire_type == _DELIMITED:
            yield field


def _fields(reader: ShardReader, start: int, stop: int) -> Iterator[_Field]:
    at = start
    while at < stop:
        tag, at = _varint(reader, at, stop)
        wire_type = tag & 7
        value, begin = 0, at
        if wire_type == _VARINT:
            value, at = _varint(reader, at, stop)
        elif wire_type == _DELIMITED:
            length, begin = _varint(reader, at, stop)
            at = begin + length
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise reader.damaged(at, "it holds no tf.train.Example")
        if at > stop:
            raise reader.damaged(begin, "a field reaches beyond its message")
        yield _Field(tag >> 3, wire_type, begin, at, value)


def _varint(reader: ShardReader, at: int, stop: int) -> tuple[int, int]:
    """Return the number at ``at`` and the position after it."""
    value = shift = 0
    for byte in reader.at(at, min(10, stop - at)):
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise reader.damaged(at, "a number does not end")


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
