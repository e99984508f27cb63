import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.v2 import functional as ops

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats.image_header import exif_orientation
from image_classification.data.transforms import (
    CropBox,
    center_crop,
    check_transform,
    decode_rgb,
    eval_image,
    eval_size,
    resized_crop,
    sample_crop,
)

DATA = DataConfig()


def crops(data: DataConfig, width_px: int, height_px: int, count: int) -> list[CropBox]:
    random = np.random.Generator(np.random.PCG64(1))
    return [sample_crop(random, width_px, height_px, data) for _ in range(count)]


def test_crops_lie_in_the_image_and_in_the_ranges() -> None:
    for box in crops(DATA, 500, 375, 2000):
        assert 0 <= box.top <= 375 - box.height
        assert 0 <= box.left <= 500 - box.width
        # Sides are rounded to whole pixels, which moves area and ratio by about a percent.
        assert 0.98 * 0.08 <= box.width * box.height / (500 * 375) <= 1.0
        assert 0.98 * 3 / 4 <= box.width / box.height <= 1.02 * 4 / 3


def test_area_is_uniform_and_ratio_log_uniform() -> None:
    """On an image that every draw fits, the means are those of the two distributions."""
    data = replace(DATA, crop_area_max=0.5)
    boxes = crops(data, 1000, 1000, 4000)
    areas = [box.width * box.height / 1e6 for box in boxes]
    log_ratios = [math.log(box.width / box.height) for box in boxes]
    assert np.mean(areas) == pytest.approx((0.08 + 0.5) / 2, abs=0.006)
    assert np.std(areas) == pytest.approx((0.5 - 0.08) / math.sqrt(12), abs=0.004)
    assert np.mean(log_ratios) == pytest.approx(0, abs=0.01)
    assert np.std(log_ratios) == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.006)


def test_area_above_one_is_drawn_again() -> None:
    """The BI-V100 runs draw areas up to 1.25 of the image; a crop never exceeds the image."""
    boxes = crops(replace(DATA, crop_area_max=1.25), 400, 400, 500)
    assert all(box.width <= 400 and box.height <= 400 for box in boxes)
    assert len(set(boxes)) > 400


@pytest.mark.parametrize(
    ("width_px", "height_px", "expected"),
    [
        (100, 1000, CropBox(top=433, left=0, height=133, width=100)),
        (1000, 100, CropBox(top=0, left=433, height=100, width=133)),
        (100, 100, CropBox(top=0, left=0, height=100, width=100)),
    ],
)
def test_crops_that_never_fit_fall_back_to_the_center(
    width_px: int, height_px: int, expected: CropBox
) -> None:
    data = replace(DATA, crop_area_min=4.0, crop_area_max=4.0)
    assert crops(data, width_px, height_px, 1) == [expected]


def test_a_one_pixel_image_has_a_crop() -> None:
    assert crops(DATA, 1, 1, 5) == [CropBox(0, 0, 1, 1)] * 5


@pytest.mark.parametrize(
    ("width_px", "height_px", "expected"),
    [(500, 375, (341, 256)), (375, 500, (256, 341)), (256, 256, (256, 256)), (10, 11, (256, 281))],
)
def test_short_side_resize_keeps_the_ratio(
    width_px: int, height_px: int, expected: tuple[int, int]
) -> None:
    assert eval_size(width_px, height_px, DATA) == expected


def test_squash_resize_ignores_the_ratio() -> None:
    assert eval_size(500, 375, replace(DATA, resize_mode="squash")) == (256, 256)


def test_center_crop() -> None:
    assert center_crop(341, 256, 224) == CropBox(16, 58, 224, 224)


def test_crop_larger_than_the_resize_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.resize 200 .* data\.image_size 224"):
        check_transform(replace(DATA, resize=200), "val")


@pytest.mark.parametrize(
    "change",
    [
        {"crop_area_min": 0.9, "crop_area_max": 0.5},
        {"crop_area_min": 0.0},
        {"crop_ratio_min": 2.0},
        {"crop_ratio_min": 0.0},
    ],
)
def test_empty_ranges_are_errors(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not a range"):
        check_transform(replace(DATA, **change), "train")


def blocks(width_px: int = 96, height_px: int = 64) -> Image.Image:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (height_px // 8, width_px // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def save(image: Image.Image, path: Path, file_format: str, **options: Any) -> str:
    image.save(path, file_format, **options)
    return str(path)


def decode_file(path: str) -> torch.Tensor:
    return decode_rgb(np.fromfile(path, dtype=np.uint8), path)


EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"exif": EXIF_ROTATED}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("P", "GIF", {}),
        ("L", "GIF", {}),
        ("RGB", "BMP", {}),
        ("P", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
        ("RGBA", "TIFF", {}),
        ("L", "TIFF", {}),
    ],
)
def test_decodes_to_the_rgb_of_pil(
    tmp_path: Path, mode: str, file_format: str, options: dict[str, object]
) -> None:
    """ImageNet has grey and CMYK JPEGs, and a PNG called .JPEG; EXIF rotation is not applied."""
    path = save(blocks().convert(mode), tmp_path / "image.JPEG", file_format, **options)
    image = decode_file(path)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 64, 96))
    with Image.open(path) as reference:
        expected = torch.from_numpy(np.array(reference.convert("RGB"))).permute(2, 0, 1)
    assert (image.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_per_channel_become_eight(tmp_path: Path, file_format: str) -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = decode_file(save(Image.fromarray(grey), tmp_path / "deep", file_format))
    assert image.dtype == torch.uint8
    assert (image[0].numpy().astype(int) - grey // 256).max() <= 1
    assert image.float().mean().item() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_undecodable_content_raises_an_error_with_the_name(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "bad.JPEG"
    if content is None:
        save(blocks(), path, "JPEG")
        path.write_bytes(path.read_bytes()[:400])
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode_file(str(path))
    assert caught.value.message.startswith(f"cannot decode {path}: ")
    assert caught.value.message.count(str(path)) == 1


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_image_is_taken(tmp_path: Path, file_format: str) -> None:
    frames = [blocks(), blocks().rotate(180)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    path = save(frames[0], tmp_path / "a", file_format, **options)
    with Image.open(path) as animation:
        assert animation.n_frames == 2  # type: ignore[attr-defined]
        first = torch.from_numpy(np.array(animation.convert("RGB"))).permute(2, 0, 1)
    assert (decode_file(path).int() - first.int()).abs().max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(tmp_path: Path, file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {"quality": 95}
    path = save(blocks(), tmp_path / "phone", file_format, exif=exif, **options)
    content = np.fromfile(path, dtype=np.uint8)
    assert exif_orientation(content) == orientation
    with Image.open(path) as image:
        stored = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        upright = ImageOps.exif_transpose(image).convert("RGB")
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    for is_upright, reference in ((False, stored), (True, expected)):
        decoded = decode_rgb(content, path, is_upright)
        assert decoded.shape == reference.shape
        assert (decoded.int() - reference.int()).abs().max() <= 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", [0, 9, 65535])
def test_invalid_exif_orientations_are_ignored(tmp_path: Path, order: str, value: int) -> None:
    tag = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, value, 0)
    start = b"II*\0" if order == "<" else b"MM\0*"
    exif = b"Exif\0\0" + start + struct.pack(f"{order}IH", 8, 1) + tag + b"\0" * 4
    for content in (exif, exif[:20], b"Exif\0\0nothing"):
        path = save(blocks(), tmp_path / "odd.jpg", "JPEG", exif=content)
        assert exif_orientation(np.fromfile(path, dtype=np.uint8)) == 1
        assert decode_rgb(np.fromfile(path, dtype=np.uint8), path, True).shape == (3, 64, 96)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_torchvisions_resize_and_center_crop(interpolation: str) -> None:
    data = DataConfig(image_size=24, resize=28, interpolation=interpolation)
    mode = InterpolationMode(interpolation)
    reference = Compose([Resize(28, interpolation=mode, antialias=True), CenterCrop(24)])
    for width_px, height_px in ((96, 64), (64, 96), (64, 64), (104, 24)):
        image = torch.from_numpy(np.array(blocks(width_px, height_px))).permute(2, 0, 1)
        assert torch.equal(eval_image(image, data), reference(image))


def test_squash_keeps_the_whole_width() -> None:
    image = torch.zeros((3, 64, 128), dtype=torch.uint8)
    image[:, :, :8] = 255
    image[:, :, -8:] = 255
    data = DataConfig(image_size=32, resize=32, resize_mode="squash")
    squashed = eval_image(image, data)
    assert squashed.shape == (3, 32, 32)
    assert squashed[0, 0, 0] == squashed[0, 0, -1] == 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("box", [CropBox(3, 7, 60, 41), CropBox(0, 0, 90, 110)], ids=str)
def test_resized_crop_equals_torchvisions(
    interpolation: str, antialias: bool, box: CropBox
) -> None:
    data = DataConfig(interpolation=interpolation, antialias=antialias, image_size=32)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (90, 110, 3), dtype=torch.uint8, generator=generator)
    for image in (pixels.permute(2, 0, 1), pixels.permute(2, 0, 1).contiguous()):
        wanted = ops.resized_crop(
            image,
            box.top,
            box.left,
            box.height,
            box.width,
            size=[32, 32],
            interpolation=InterpolationMode(interpolation),
            antialias=antialias,
        )
        assert torch.equal(resized_crop(image, box, data), wanted)
