import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from image_classification.data.formats.image_header import plain_jpeg_size


def encoded(mode: str = "RGB", format: str = "JPEG", **options: object) -> npt.NDArray[np.uint8]:
    target = io.BytesIO()
    Image.new(mode, (50, 30)).save(target, format=format, **options)
    return np.frombuffer(target.getvalue(), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        encoded(),
        encoded(subsampling=2),
        encoded(progressive=True),
        encoded("L"),
        encoded(exif=b"Exif\0\0" + bytes(60_000)),
    ],
    ids=["full colour", "subsampled", "progressive", "grey", "with much before the frame"],
)
def test_plain_jpegs(content: npt.NDArray[np.uint8]) -> None:
    assert plain_jpeg_size(content) == (50, 30)


def test_an_exif_rotation_changes_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert plain_jpeg_size(encoded(exif=exif)) == (50, 30)


@pytest.mark.parametrize(
    "content",
    [
        encoded("CMYK"),
        encoded(format="PNG"),
        encoded()[:-2],
        encoded()[:100],
        np.empty(0, np.uint8),
        np.frombuffer(b"\xff\xd8\xff\xd9", np.uint8),
        np.frombuffer(b"\xff\xd8\xff\xe0\x00\x00\xff\xd9", np.uint8),
        np.frombuffer(b"\xff\xd8" + bytes(50) + b"\xff\xd9", np.uint8),
    ],
    ids=["CMYK", "PNG", "no end", "cut", "empty", "no frame", "no length", "zeros"],
)
def test_everything_else(content: npt.NDArray[np.uint8]) -> None:
    assert plain_jpeg_size(content) is None


def test_no_byte_of_a_header_makes_it_fail() -> None:
    content = encoded()
    random = np.random.default_rng(0)
    for _ in range(2000):
        damaged = content.copy()
        damaged[random.integers(2, 200)] = random.integers(0, 256)
        size = plain_jpeg_size(damaged)
        assert size is None or min(size) > 0
