import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import open_index

IMAGE = b"\xff\xd8 image"
Members = list[tuple[str, bytes]]


def write(root: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> Path:
    path = root / "train-000000.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def error_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_index(root, "train", 1)
    return caught.value.message


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_length(tmp_path: Path, kind: int) -> None:
    long = "f" * 90 + "/" + "g" * 60
    names = ["a", "cats/b", long]
    if kind != tarfile.USTAR_FORMAT:
        names += ["x" * 300, "Kätzchen/ü", "y" * 200 + "/" + "z" * 200]
    members: Members = []
    for number, name in enumerate(names):
        members += [
            (f"{name}.cls", str(number % 2).encode()),
            (f"{name}.jpg", IMAGE + name.encode()),
        ]
    write(tmp_path, members, kind)
    index = open_index(tmp_path, "train", 2)
    for number, name in enumerate(names):
        assert index.name(number) == f"train-000000.tar:{name}.jpg"
        assert index.read(number).tobytes() == IMAGE + name.encode()
    assert index.labels.tolist() == [number % 2 for number in range(len(names))]


@pytest.mark.parametrize("for_all", [{}, {"comment": "x"}])
def test_pax_headers_of_one_member_and_of_all(tmp_path: Path, for_all: dict[str, str]) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w", pax_headers=for_all) as tar:
        for name, content in (("a.cls", b"1"), ("a.jpg", IMAGE), ("ü.cls", b"0"), ("ü.jpg", b"x")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1234.5  # a fraction needs a header
            tar.addfile(info, io.BytesIO(content))
    index = open_index(tmp_path, "train", 2)
    assert [index.name(i).split(":")[1] for i in range(2)] == ["a.jpg", "ü.jpg"]
    assert [index.read(i).tobytes() for i in range(2)] == [IMAGE, b"x"]
    assert index.labels.tolist() == [1, 0]


def test_members_in_any_order_and_others_ignored(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            ("b.JPEG", IMAGE),
            ("b.json", b"{}"),
            ("a.cls", b"1\n"),
            ("b.cls", b" 0"),
            ("b.pyd", b"\x80\x04."),  # a pickle: never read
            ("a.png", IMAGE),
        ],
    )
    index = open_index(tmp_path, "train", 2)
    assert [index.name(i).split(":")[1] for i in range(2)] == ["b.JPEG", "a.png"]
    assert index.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "name", ["/etc/passwd.jpg", "../x.jpg", "a/../../x.jpg", "..", "a/..", "//x.jpg"]
)
def test_unsafe_member_names_raise_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path, [("a.cls", b"0"), ("a.jpg", IMAGE), (name, IMAGE)])
    assert "leads out of the shard" in error_of(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_raise_an_error(tmp_path: Path, kind: bytes) -> None:
    path = write(tmp_path, [("a.cls", b"0"), ("a.jpg", IMAGE)])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "is a link, a device or of an unknown kind" in error_of(tmp_path)


def test_folders_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, [("d/a.cls", b"0"), ("d/a.jpg", IMAGE)])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("d")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    assert len(open_index(tmp_path, "train", 1)) == 1


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("a.jpg", IMAGE)], "has no .cls member"),
        ([("a.jpg", IMAGE), ("a.cls", b"cat")], "does not hold a class number"),
        ([("a.jpg", IMAGE), ("a.cls", b"-1")], "does not hold a class number"),
        ([("a.jpg", IMAGE), ("a.cls", b"9" * 12)], "label that is not a class"),
        ([("a.jpg", IMAGE), ("a.cls", b"0" * 100)], "does not hold a class number"),
        ([("a.jpg", IMAGE), ("a.png", IMAGE), ("a.cls", b"0")], "two images are called 'a'"),
        ([("a.jpg", b""), ("a.cls", b"0")], "is empty"),
        ([], "hold no image"),
    ],
)
def test_invalid_samples(tmp_path: Path, members: Members, why: str) -> None:
    write(tmp_path, members)
    assert why in error_of(tmp_path)


def cut_in_image(content: bytes) -> bytes:
    return content[:3000]


def cut_in_header(content: bytes) -> bytes:
    return content[:2100]


def cut_in_padding(content: bytes) -> bytes:
    return content[:7600]


def flipped(content: bytes) -> bytes:
    return content[:3] + bytes([content[3] ^ 1]) + content[4:]


def compressed(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content)


def signed_size(content: bytes) -> bytes:
    header = bytearray(content[:512])
    header[124:136] = b"-0000001000\0"  # 512: the next header would be this one again
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    "damage", [cut_in_image, cut_in_header, cut_in_padding, flipped, compressed, signed_size]
)
def test_damaged_shards(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path, [("a.json", b"{}"), ("a.cls", b"0"), ("a.jpg", bytes(5000))])
    path.write_bytes(damage(path.read_bytes()))
    assert f"shard {path} is damaged at byte" in error_of(tmp_path)


def test_commands_and_urls_are_not_supported(tmp_path: Path) -> None:
    for name in ("pipe:cat train-000000.tar", "https://example.org/train-000000.tar"):
        with pytest.raises(DataError, match="no data set at"):
            open_index(Path(name), "train", 1)
    (tmp_path / "pipe:touch train-000000.tar").symlink_to("/nonexistent")
    with pytest.raises(DataError, match="no train shards"):
        open_index(tmp_path, "train", 1)
