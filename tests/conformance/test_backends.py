"""Every registered data backend meets one contract.

The folder holds images of one color each, so a sample is known by its color whatever the crop and
the resampling.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_classification.core.types import Batch
from image_classification.data.loaders import BACKENDS, LoaderSpec
from tests.support.loaders import assert_same_batches, epoch_of, loader_spec, opened

CLASSES = ("0000", "0001", "0002")
TRAIN_IMAGES = 29
VAL_IMAGES = 11
SIZE_PX = 16

Make = Callable[..., LoaderSpec]
Sample = tuple[int, tuple[int, ...]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colors")
    for split, count, blue in (("train", TRAIN_IMAGES, 32), ("val", VAL_IMAGES, 224)):
        for i in range(count):
            target = root / split / CLASSES[i % len(CLASSES)]
            target.mkdir(parents=True, exist_ok=True)
            pixels = np.full((20 + i, 24, 3), (16 * (i % 15), 16 * (i // 15), blue), np.uint8)
            # Red and green identify the image; crops and flips do not change them.
            image = Image.fromarray(pixels)
            if i % 3:
                image.save(target / f"{i:02d}.jpg", quality=100, subsampling=0)
            else:
                image.save(target / f"{i:02d}.png")
    return root


@pytest.fixture(params=list(BACKENDS))
def make(request: pytest.FixtureRequest, folder: Path) -> Make:
    if request.param.startswith("dali"):
        pytest.importorskip("nvidia.dali")
    device = "cpu"
    if request.param == "dali-gpu":
        if torch.cuda.device_count() == 0:
            pytest.skip("no CUDA device")
        device = "cuda:0"

    return partial(
        loader_spec,
        "synthetic" if request.param == "synthetic" else folder,
        backend=request.param,
        device=device,
        per_device_batch=2,
        num_classes=len(CLASSES),
        seed=11,
        image_size=SIZE_PX,
        resize=18,
        synthetic_train_images=TRAIN_IMAGES,
        synthetic_val_images=VAL_IMAGES,
    )


def samples(batches: Sequence[Batch]) -> list[Sample]:
    """Return (label, mean color) of the valid images, in order."""
    known = []
    for batch in batches:
        for image, label, valid in zip(batch.images, batch.labels, batch.valid, strict=True):
            if valid:
                color = (1000 * image.double().mean((1, 2))).round().int().tolist()
                known.append((int(label), tuple(color)))
    return known


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("memory_format", ["nchw", "nhwc"])
def test_shapes_types_layout_and_range(make: Make, split: str, memory_format: str) -> None:
    spec = make(split=split, per_device_batch=3, memory_format=memory_format)
    batches = epoch_of(spec)
    layout = torch.channels_last if memory_format == "nhwc" else torch.contiguous_format
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (spec.data.mean, spec.data.std))
    lowest, highest = (0 - mean) / std, (1 - mean) / std
    for batch in batches:
        assert batch.images.shape == (3, 3, SIZE_PX, SIZE_PX)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=layout)
        assert (batch.labels.shape, batch.labels.dtype) == ((3,), torch.int64)
        assert (batch.valid.shape, batch.valid.dtype) == ((3,), torch.bool)
        real = batch.images[batch.valid].cpu()
        assert bool((real >= lowest - 1e-5).all() and (real <= highest + 1e-5).all())
        assert bool((batch.labels >= 0).all() and (batch.labels < len(CLASSES)).all())
    if split == "train":
        assert all(bool(batch.valid.all()) for batch in batches)


def test_counts_and_classes(make: Make) -> None:
    with opened(make(accumulation=3)) as train, opened(make(split="val")) as val:
        assert (train.num_images, val.num_images) == (TRAIN_IMAGES, VAL_IMAGES)
        assert train.classes == val.classes == CLASSES
        assert (train.steps_per_epoch, val.steps_per_epoch) == (TRAIN_IMAGES // 6, 6)


def test_labels_are_positions_in_classes(make: Make) -> None:
    """Image i of the folder is in class i % 3 and its red is 16 * (i % 15)."""
    spec = make(split="val", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if spec.data.backend == "synthetic":
        pytest.skip("synthetic labels belong to no image")
    for label, (red, _, _) in samples(epoch_of(spec)):
        assert label == round(red / 1000 * 255 / 16) % len(CLASSES)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_validation_covers_each_image_once(make: Make, world_size: int, batch: int) -> None:
    per_rank = [
        epoch_of(make(split="val", rank=rank, world_size=world_size, per_device_batch=batch))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    seen = Counter(sample for batches in per_rank for sample in samples(batches))
    assert sum(seen.values()) == VAL_IMAGES
    assert seen == Counter(samples(epoch_of(make(split="val", per_device_batch=VAL_IMAGES))))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_optimizer_steps_hold_the_same_images_in_any_world(make: Make, world_size: int) -> None:
    accumulation = 4 // world_size
    per_rank = [
        epoch_of(make(rank=rank, world_size=world_size, accumulation=accumulation), epoch=3)
        for rank in range(world_size)
    ]
    # Micro-batch a of rank r is number a * W + r of the step.
    interleaved = [batch for together in zip(*per_rank, strict=True) for batch in together]
    assert_same_batches(interleaved, epoch_of(make(accumulation=4), epoch=3))


@pytest.mark.parametrize("batch", [1, 4, 29])
def test_no_train_image_occurs_twice_in_an_epoch(make: Make, batch: int) -> None:
    seen = samples(epoch_of(make(per_device_batch=batch)))
    assert len(seen) == TRAIN_IMAGES // batch * batch
    everything = Counter(samples(epoch_of(make(per_device_batch=TRAIN_IMAGES), epoch=1)))
    assert not Counter(seen) - everything


def test_batches_depend_on_seed_and_epoch(make: Make) -> None:
    reference = epoch_of(make(), epoch=1)
    with opened(make()) as loader:
        list(loader.epoch(0))
        assert_same_batches(list(loader.epoch(1)), reference)
    assert samples(epoch_of(make(), epoch=2)) != samples(reference)
    assert samples(epoch_of(make(seed=12), epoch=1)) != samples(reference)


def test_validation_is_the_same_in_every_epoch(make: Make) -> None:
    with opened(make(split="val")) as loader:
        assert_same_batches(list(loader.epoch(0)), list(loader.epoch(5)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_start_step_resumes_bit_for_bit(make: Make, split: str) -> None:
    accumulation = 2 if split == "train" else 1
    spec = make(split=split, accumulation=accumulation)
    whole = epoch_of(spec, epoch=2)
    with opened(spec) as loader:
        for step in range(loader.steps_per_epoch + 1):
            assert_same_batches(list(loader.epoch(2, step)), whole[step * accumulation :])


def test_an_unfinished_epoch_does_not_change_the_next(make: Make) -> None:
    expected = epoch_of(make(), epoch=1)
    with opened(make()) as loader:
        next(loader.epoch(0))
        assert_same_batches(list(loader.epoch(1)), expected)


def test_close_may_be_called_twice_and_ends_the_loader(make: Make) -> None:
    with opened(make()) as loader:
        next(loader.epoch(0))
        loader.close()
        with pytest.raises(ValueError, match="closed"):
            loader.epoch(0)


def test_loaders_of_all_ranks_run_side_by_side(make: Make) -> None:
    with ExitStack() as stack:
        loaders = [stack.enter_context(opened(make(rank=rank, world_size=3))) for rank in range(3)]
        rounds = list(zip(*(loader.epoch(0) for loader in loaders), strict=True))
    assert len(rounds) == TRAIN_IMAGES // 6
    together = [batch for ranks in rounds for batch in ranks]
    assert_same_batches(together, epoch_of(make(per_device_batch=2, accumulation=3)))
