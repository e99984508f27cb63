"""Small folder data sets, made for each test."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classification.data.loaders import LoaderSpec
from tests.support.loaders import loader_spec


def noise(seed: int, width_px: int, height_px: int) -> Image.Image:
    """Blocks of 8 px in random colors: crops and flips differ, and JPEG keeps them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height_px // 8), -(-width_px // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[:height_px, :width_px])


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """12 train and 5 val images of 40 to 72 px in the classes ``cat`` and ``dog``."""
    root = tmp_path / "images"
    for split, counts in (("train", {"cat": 7, "dog": 5}), ("val", {"cat": 3, "dog": 2})):
        for name, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = noise(100 * len(split) + 10 * len(folder.parts) + i, 40 + 8 * (i % 3), 48)
                image.save(folder / f"{i}.JPEG", quality=90)
    return root


@pytest.fixture
def make_spec(image_folder: Path) -> Callable[..., LoaderSpec]:
    """`loader_spec` over `image_folder`."""
    return partial(loader_spec, image_folder)
