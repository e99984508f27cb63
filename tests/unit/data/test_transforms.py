import math
from dataclasses import replace

import numpy as np
import pytest

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError
from image_classification.data.transforms import (
    CropBox,
    eval_transform,
    sample_crop,
    train_transform,
)

DATA = DataConfig()


def crops(data: DataConfig, width_px: int, height_px: int, count: int) -> list[CropBox]:
    random = np.random.Generator(np.random.PCG64(1))
    transform = train_transform(data)
    return [sample_crop(random, width_px, height_px, transform) for _ in range(count)]


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
def test_what_never_fits_falls_back_to_the_centre(
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
    assert eval_transform(DATA).resized(width_px, height_px) == expected


def test_squash_resize_ignores_the_ratio() -> None:
    assert eval_transform(replace(DATA, resize_mode="squash")).resized(500, 375) == (256, 256)


def test_centre_crop() -> None:
    assert eval_transform(DATA).crop_box(341, 256) == CropBox(16, 58, 224, 224)


def test_crop_larger_than_the_resize_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.resize 200 .* data\.image_size 224"):
        eval_transform(replace(DATA, resize=200))


@pytest.mark.parametrize(
    "change",
    [
        {"crop_area_min": 0.9, "crop_area_max": 0.5},
        {"crop_area_min": 0.0},
        {"crop_ratio_min": 2.0},
        {"crop_ratio_min": 0.0},
    ],
)
def test_empty_ranges_are_errors(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="is no range"):
        train_transform(replace(DATA, **change))
