"""dali-gpu on a real GPU, against the pytorch backend's pixels.

`tests/conformance/test_backends.py` has the contract; here are the pixels, the memory and what
goes through the host.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_classification.core.types import Batch
from tests.support.loaders import RAW_PIXELS, epoch_of, loader_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device"),
]

PER_SPLIT = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth images as JPEGs, and a PNG, which DALI does not get."""
    pytest.importorskip("nvidia.dali")
    root = tmp_path_factory.mktemp("smooth")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(PER_SPLIT):
            target = root / split / f"{i % 2}"
            target.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8))
            image = coarse.resize((200 + 9 * i, 150 + 5 * i), Image.Resampling.BICUBIC)
            if i == 5:
                image.save(target / f"{i:02d}.png")
            else:
                image.save(target / f"{i:02d}.jpg", quality=95)
    return root


def images_of(root: Path, backend: str, split: str, batch: int, **data: object) -> list[Batch]:
    spec = loader_spec(
        root,
        **RAW_PIXELS,
        backend=backend,
        workers=2,
        image_size=64,
        resize=72,
        split=split,
        per_device_batch=batch,
        seed=3,
        device="cuda:0",
        memory_format="nhwc",
        **data,
    )
    return epoch_of(spec)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("batch", [4, 1])
def test_pixels_are_near_those_of_the_pytorch_backend(folder: Path, split: str, batch: int) -> None:
    mine = images_of(folder, "dali-gpu", split, batch)
    other = images_of(folder, "pytorch", split, batch)
    for a, b in zip(mine, other, strict=True):
        assert a.images.device.type == "cuda"
        assert a.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.labels, b.labels)
        # The GPU's decoder and resampler round differently, by one or two of 255.
        assert (a.images - b.images).abs().mean() < 1.5


def test_augmentation_is_drawn_as_elsewhere(folder: Path) -> None:
    data = {"augmentation": "trivialaugment", "random_erasing": 1.0}
    mine = torch.cat([b.images for b in images_of(folder, "dali-gpu", "train", 4, **data)])
    other = torch.cat([b.images for b in images_of(folder, "pytorch", "train", 4, **data)])
    assert (mine - other).abs().median() < 3


def test_later_batches_do_not_change_earlier_ones(folder: Path) -> None:
    held = images_of(folder, "dali-gpu", "train", 2)
    again = images_of(folder, "dali-gpu", "train", 2)
    for a, b in zip(held, again, strict=True):
        assert torch.equal(a.images, b.images)
