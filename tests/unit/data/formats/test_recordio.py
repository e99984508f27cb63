import io
import struct
from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.formats import recordio
from image_classification.data.formats.folder import open_index

MAGIC = struct.pack("<I", 0xCED7230A)


def write(root: Path, images: list[tuple[bytes, int]]) -> list[int]:
    with open(root / "train.rec", "wb") as file:
        return [
            recordio.write_record(file, content, label, number)
            for number, (content, label) in enumerate(images)
        ]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        MAGIC,
        MAGIC * 3,
        b"abcd" + MAGIC + b"efg",
        b"abcdefg" + MAGIC,  # not at a multiple of 4: not cut
        b"abc" + MAGIC + b"d" + MAGIC + b"e" + MAGIC + b"f",
        bytes(5000) + MAGIC + bytes(5001),
    ],
)
def test_content_with_the_magic_number_is_split_and_joined(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, [(b"first", 0), (content, 1), (b"last", 0)])
    index = open_index(tmp_path, "train", 2)
    assert [index.read(i).tobytes() for i in range(3)] == [b"first", content, b"last"]
    assert index.labels.tolist() == [0, 1, 0]
    # Readers find records by the magic number at multiples of 4: none may be left inside.
    raw = (tmp_path / "train.rec").read_bytes()
    at, heads = 0, 0
    while at < len(raw):
        length = struct.unpack_from("<I", raw, at + 4)[0] & (1 << 29) - 1
        at += 8 + length + -length % 4
        heads += 1
    assert heads == sum(raw[i : i + 4] == MAGIC for i in range(0, len(raw), 4))


def test_the_idx_file_gives_the_order(tmp_path: Path) -> None:
    offsets = write(tmp_path, [(b"a", 0), (b"b", 1), (b"c", 1)])
    assert open_index(tmp_path, "train", 2).labels.tolist() == [0, 1, 1]
    (tmp_path / "train.idx").write_text(f"7\t{offsets[2]}\n9\t{offsets[0]}\n")
    index = open_index(tmp_path, "train", 2)
    assert [index.read(i).tobytes() for i in range(2)] == [b"c", b"a"]
    assert [index.name(i) for i in range(2)] == ["train.rec#2", "train.rec#0"]
    (tmp_path / "train.idx").write_text(f"7\t{offsets[2] + 4}\n")
    with pytest.raises(DataError, match=r"train.idx is not of .*train.rec"):
        open_index(tmp_path, "train", 2)
    (tmp_path / "train.idx").write_text("seven\n")
    with pytest.raises(DataError, match=r"train.idx is damaged"):
        open_index(tmp_path, "train", 2)


def labelled(labels: list[float]) -> bytes:
    head = struct.pack("<IfQQ", len(labels), 0.0, 0, 0)
    content = head + struct.pack(f"<{len(labels)}f", *labels) + b"image"
    return MAGIC + struct.pack("<I", len(content)) + content + bytes(-len(content) % 4)


def test_labels_may_be_an_array(tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(labelled([0.0, 7.5]) + labelled([1.0]))
    index = open_index(tmp_path, "train", 2)
    assert index.labels.tolist() == [0, 1]
    assert [index.read(i).tobytes() for i in range(2)] == [b"image"] * 2


@pytest.mark.parametrize("label", [0.5, -1.0, 1e30, float("inf"), float("nan")])
def test_invalid_labels(tmp_path: Path, label: float) -> None:
    (tmp_path / "train.rec").write_bytes(labelled([label]))
    with pytest.raises(DataError, match="not a class"):
        open_index(tmp_path, "train", 2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"RIFF" + bytes(100), "no RecordIO record begins there"),
        (labelled([0.0])[:-8], "ends inside a record"),
        (labelled([0.0]) + MAGIC, "ends inside a record"),
        (MAGIC + struct.pack("<I", 4) + b"abcd", "no image's header"),
        (MAGIC + struct.pack("<I", 3 << 29 | 4) + b"abcd", "begins in its middle"),
        (MAGIC + struct.pack("<I", 1 << 29 | 24) + bytes(24) + labelled([0.0]), "last part"),
        (MAGIC + struct.pack("<I", 24) + b"\xff" * 4 + bytes(20), "has 4294967295 labels"),
        (b"", "hold no image"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "train.rec").write_bytes(content)
    with pytest.raises(DataError, match=why):
        open_index(tmp_path, "train", 1)


def test_an_empty_image_raises_an_error_when_read(tmp_path: Path) -> None:
    write(tmp_path, [(b"", 0), (b"x", 0)])
    index = open_index(tmp_path, "train", 1)
    with pytest.raises(DataError, match=r"train.rec#0: the image is empty"):
        index.read(0)
    assert index.read(1).tobytes() == b"x"


def test_too_large_for_a_record() -> None:
    class Huge(bytes):
        def __radd__(self, other: bytes) -> "Huge":
            return self

        def __len__(self) -> int:
            return 1 << 29

    with pytest.raises(DataError, match="too many for a RecordIO record"):
        recordio.write_record(io.BytesIO(), Huge(), 0, 4)
