import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from image_classification.core.errors import DataError
from image_classification.data.formats.image_header import (
    MAX_PIXELS,
    check_size,
    exif_orientation,
    image_size,
    plain_jpeg_size,
)


def encoded(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (53, 31), (200, 10, 90)).convert(mode).save(file, file_format, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    "content",
    [
        encoded("JPEG"),
        encoded("JPEG", progressive=True),
        encoded("JPEG", "CMYK"),
        encoded("JPEG", exif=EXIF, comment=b"\xff\xc0" * 50),
        encoded("PNG"),
        encoded("GIF"),
        encoded("WEBP"),
        encoded("WEBP", lossless=True),
        encoded("WEBP", exif=EXIF),
        encoded("WEBP", "RGBA"),
        encoded("BMP"),
        encoded("TIFF"),
        encoded("TIFF", compression="tiff_lzw"),
        encoded("TIFF", big_tiff=False, exif=EXIF),
    ],
)
def test_sizes(content: bytes) -> None:
    assert image_size(content) == (53, 31)
    assert image_size(np.frombuffer(content, dtype=np.uint8)) == (53, 31)
    assert check_size(content, "x") == (53, 31)


def test_fill_bytes_before_a_marker() -> None:
    content = encoded("JPEG")
    assert image_size(content[:2] + b"\xff\xff\xff" + content[2:]) == (53, 31)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"GIF89a", b"text", b"\x89PNG\r\n\x1a\n1"])
def test_no_header(content: bytes) -> None:
    assert image_size(content) is None
    with pytest.raises(DataError, match=r"cannot decode a/b.JPEG: it has no header"):
        check_size(content, "a/b.JPEG")


@pytest.mark.parametrize("step", [1, 7])
def test_truncated_and_random_content_raises_no_error(step: int) -> None:
    rng = np.random.default_rng(0)
    for file_format in ("JPEG", "PNG", "GIF", "WEBP"):
        content = encoded(file_format)
        for stop in range(0, len(content), step):
            image_size(content[:stop])
            noisy = np.frombuffer(content, dtype=np.uint8).copy()
            noisy[stop:] = rng.integers(0, 256, len(noisy) - stop)
            image_size(noisy)


def png_of(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + crc


def test_too_many_pixels_raise_an_error() -> None:
    assert check_size(png_of(MAX_PIXELS, 1), "x") == (MAX_PIXELS, 1)
    with pytest.raises(DataError, match=r"cannot decode x: 60000 x 60000 pixels"):
        check_size(png_of(60_000, 60_000), "x")


def test_every_frame_of_an_animation_counts() -> None:
    file = io.BytesIO()
    frames = [Image.new("P", (4000, 4000), i) for i in range(13)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="4000 x 4000 pixels"):
        check_size(file.getvalue(), "x")


def plain(mode: str = "RGB", **options: Any) -> npt.NDArray[np.uint8]:
    return np.frombuffer(encoded("JPEG", mode, **options), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        plain(),
        plain(subsampling=2),
        plain(progressive=True),
        plain("L"),
        plain(exif=EXIF),
        plain(exif=b"Exif\0\0" + bytes(60_000)),
    ],
    ids=[
        "full color",
        "subsampled",
        "progressive",
        "gray",
        "EXIF rotation",
        "with much before the frame",
    ],
)
def test_sizes_of_plain_jpegs(content: npt.NDArray[np.uint8]) -> None:
    assert plain_jpeg_size(content) == (53, 31)


@pytest.mark.parametrize(
    "content",
    [
        plain("CMYK"),
        np.frombuffer(encoded("PNG"), np.uint8),
        plain()[:-2],
        plain()[:100],
        np.empty(0, np.uint8),
        np.frombuffer(b"\xff\xd8\xff\xd9", np.uint8),
        np.frombuffer(b"\xff\xd8\xff\xe0\x00\x00\xff\xd9", np.uint8),
        np.frombuffer(b"\xff\xd8" + bytes(50) + b"\xff\xd9", np.uint8),
    ],
    ids=["CMYK", "PNG", "no end", "cut", "empty", "no frame", "no length", "zeros"],
)
def test_other_content_is_no_plain_jpeg(content: npt.NDArray[np.uint8]) -> None:
    assert plain_jpeg_size(content) is None


def test_damaged_headers_raise_no_error() -> None:
    content = plain()
    random = np.random.default_rng(0)
    for _ in range(2000):
        damaged = content.copy()
        damaged[random.integers(2, 200)] = random.integers(0, 256)
        size = plain_jpeg_size(damaged)
        assert size is None or min(size) > 0


def test_a_plain_jpeg_has_the_size_of_the_upright_image() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = np.frombuffer(encoded("JPEG", exif=exif), dtype=np.uint8)
        assert plain_jpeg_size(content) == (53, 31)
        turned = (31, 53) if orientation >= 5 else (53, 31)
        assert plain_jpeg_size(content, upright=True) == turned
        assert exif_orientation(content) == orientation


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_cut_off_headers_have_no_orientation(file_format: str) -> None:
    content = encoded(file_format, exif=EXIF)
    assert exif_orientation(content) == 6
    for length in range(0, len(content), 7):
        assert exif_orientation(content[:length]) in (1, 6)
