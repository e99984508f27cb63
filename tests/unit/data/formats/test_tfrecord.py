import io
import struct
from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.formats import tfrecord
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.tfrecord import masked_crc32c


@pytest.mark.parametrize(
    ("content", "crc"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)],  # RFC 3720, B.4
)
def test_masked_crc_is_rotated_by_15_bits_plus_a_constant(content: bytes, crc: int) -> None:
    rotated = (masked_crc32c(content) - 0xA282EAD8) % (1 << 32)
    assert (rotated << 15 | rotated >> 17) % (1 << 32) == crc


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_list(value: bytes) -> bytes:
    return field(1, field(1, value))


def int64_list(value: int, packed: bool) -> bytes:
    inner = field(1, varint(value)) if packed else varint(1 << 3) + varint(value)
    return field(3, inner)


def entry(key: bytes, feature: bytes, key_first: bool = True) -> bytes:
    parts = [field(1, key), field(2, feature)]
    return field(1, b"".join(parts if key_first else parts[::-1]))


def record(example: bytes) -> bytes:
    header = struct.pack("<Q", len(example))
    return (
        header
        + struct.pack("<I", masked_crc32c(header))
        + example
        + struct.pack("<I", masked_crc32c(example))
    )


def write(root: Path, *entries: bytes, name: str = "train-00000-of-00001") -> None:
    with open(root / name, "ab") as file:
        file.write(record(field(1, b"".join(entries))))


IMAGE = b"\xff\xd8" + bytes(5000)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("key_first", [True, False])
@pytest.mark.parametrize("encoded_first", [True, False])
def test_any_order_of_fields(
    tmp_path: Path, packed: bool, key_first: bool, encoded_first: bool
) -> None:
    """Serializers may choose the order of a map's entries and of a message's fields."""
    for number, (label, synset) in enumerate([(2, b"n02"), (1, b"n01"), (2, b"n02")]):
        entries = [
            entry(b"image/encoded", bytes_list(IMAGE + bytes([number])), key_first),
            entry(b"image/class/label", int64_list(label, packed), key_first),
            entry(b"image/class/synset", bytes_list(synset), key_first),
            entry(b"image/object/bbox/xmin", field(2, field(1, bytes(4))), key_first),
        ]
        write(tmp_path, *(entries if encoded_first else entries[::-1]))
    index = open_index(tmp_path, "train", 2)
    assert index.labels.tolist() == [1, 0, 1]
    assert index.classes == ("n01", "n02")
    assert index.name(2) == "train-00000-of-00001#2"
    assert [index.read(i).tobytes() for i in range(3)] == [IMAGE + bytes([i]) for i in range(3)]


def test_two_names_of_one_class(tmp_path: Path) -> None:
    for synset in (b"n01", b"n02"):
        write(
            tmp_path,
            entry(b"image/encoded", bytes_list(IMAGE)),
            entry(b"image/class/label", int64_list(1, False)),
            entry(b"image/class/synset", bytes_list(synset)),
        )
    with pytest.raises(DataError, match="calls class 0 n02, others n01"):
        open_index(tmp_path, "train", 1)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry(b"image/encoded", bytes_list(IMAGE))], "no image/class/label"),
        ([entry(b"image/class/label", int64_list(1, True))], "no image/encoded"),
        (
            [
                entry(b"image/encoded", bytes_list(b"")),
                entry(b"image/class/label", int64_list(1, True)),
            ],
            "no image/encoded",
        ),
        (
            [
                entry(b"image/encoded", bytes_list(IMAGE)),
                entry(b"image/class/label", int64_list(0, True)),
            ],
            "label that is not a class",
        ),
        (
            [
                entry(b"image/encoded", bytes_list(IMAGE)),
                entry(b"image/class/label", int64_list((1 << 64) - 5, False)),
            ],
            "label that is not a class",
        ),
        ([entry(b"image/class/label", bytes_list(b"1"))], "must be a number"),
        ([b"\x0a\x7f"], "beyond its message"),
        ([b"\x0b"], "no tf.train.Example"),
        ([b"\xff" * 12], "does not end"),
    ],
)
def test_records_without_image_or_label(tmp_path: Path, entries: list[bytes], why: str) -> None:
    write(tmp_path, *entries)
    with pytest.raises(DataError, match=why) as caught:
        open_index(tmp_path, "train", 1)
    assert str(tmp_path / "train-00000-of-00001") in caught.value.message


@pytest.mark.parametrize("keep", [-1, 5, 100])
def test_a_truncated_shard(tmp_path: Path, keep: int) -> None:
    file = io.BytesIO()
    tfrecord.write_record(file, IMAGE, 0, "cat", "1.JPEG", (1, 1))
    (tmp_path / "train-00000-of-00001").write_bytes(file.getvalue()[:keep])
    with pytest.raises(DataError, match="ends inside a record"):
        open_index(tmp_path, "train", 1)


def test_a_compressed_shard(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DataError, match=r"compressed ones are not read"):
        open_index(tmp_path, "train", 1)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"validation-{number:05d}-of-00004").touch()
    with pytest.raises(DataError, match=r"lacks 2 of 4 .*validation-00001-of-00004"):
        open_index(tmp_path, "val", 1)
    (tmp_path / "validation-00001-of-00003").touch()
    with pytest.raises(DataError, match="of several sets"):
        open_index(tmp_path, "val", 1)
