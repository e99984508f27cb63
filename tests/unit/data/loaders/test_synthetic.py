from typing import Any

import pytest
import torch

from image_classification.data.loaders import Loader, open_loader
from tests.support.loaders import loader_spec


def loader(**changes: Any) -> Loader:
    sizes = {"synthetic_train_images": 100, "synthetic_val_images": 70, "num_classes": 10}
    return open_loader(loader_spec("synthetic", **{"backend": "synthetic", **sizes, **changes}))


def test_counts_and_class_names() -> None:
    train, val = loader(), loader(split="val")
    assert (train.num_images, train.steps_per_epoch) == (100, 33)
    assert (val.num_images, val.steps_per_epoch) == (70, 24)
    assert train.classes == tuple(f"{i:04d}" for i in range(10))
    assert sum(int(batch.valid.sum()) for batch in val.epoch(0)) == 70


def test_seed_and_split_change_images_and_labels() -> None:
    def first(**changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch = next(loader(per_device_batch=70, **changes).epoch(0))
        return batch.images, batch.labels

    images, labels = first(split="val")
    assert len(labels.unique()) == 10
    assert len(images.flatten(1).unique(dim=0)) == 64
    for other_images, other_labels in (first(split="val", seed=8), first(split="train")):
        assert not torch.equal(images, other_images)
        assert not torch.equal(labels, other_labels)


def test_batches_may_be_written_to() -> None:
    train = loader()
    batch = next(train.epoch(0))
    expected = batch.images.clone()
    batch.images.zero_()
    assert torch.equal(next(train.epoch(0)).images, expected)


def test_pixels_are_uniform_noise() -> None:
    train = loader(per_device_batch=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = next(train.epoch(0)).images
    assert images.mean().item() == pytest.approx(0.5, abs=0.005)
    assert images.std().item() == pytest.approx(12**-0.5, abs=0.005)
