from collections.abc import Callable

import pytest
import torch

from image_classification.data.loaders.protocol import LoaderSpec
from image_classification.data.loaders.synthetic import open_loader


@pytest.fixture
def spec(make_spec: Callable[..., LoaderSpec]) -> Callable[..., LoaderSpec]:
    def make_synthetic(**changes: object) -> LoaderSpec:
        sizes = {"synthetic_train_images": 100, "synthetic_val_images": 70}
        return make_spec(**{"backend": "synthetic", "num_classes": 10, **sizes, **changes})

    return make_synthetic


def test_counts_and_class_names(spec: Callable[..., LoaderSpec]) -> None:
    train, val = open_loader(spec()), open_loader(spec(split="val"))
    assert (train.num_images, train.steps_per_epoch) == (100, 33)
    assert (val.num_images, val.steps_per_epoch) == (70, 24)
    assert train.classes == tuple(f"{i:04d}" for i in range(10))
    assert sum(int(batch.valid.sum()) for batch in val.epoch(0)) == 70


def test_seed_and_split_change_images_and_labels(spec: Callable[..., LoaderSpec]) -> None:
    def whole(**changes: object) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(open_loader(spec(per_device_batch=70, **changes)).epoch(0))
        return batches[0].images, batches[0].labels

    images, labels = whole(split="val")
    assert len(labels.unique()) == 10
    assert len(images.flatten(1).unique(dim=0)) == 64
    for other_images, other_labels in (whole(split="val", seed=8), whole(split="train")):
        assert not torch.equal(images, other_images)
        assert not torch.equal(labels, other_labels)


def test_batches_may_be_written_to(spec: Callable[..., LoaderSpec]) -> None:
    loader = open_loader(spec())
    first = next(loader.epoch(0))
    expected = first.images.clone()
    first.images.zero_()
    assert torch.equal(next(loader.epoch(0)).images, expected)


def test_pixels_are_uniform_noise(spec: Callable[..., LoaderSpec]) -> None:
    loader = open_loader(spec(per_device_batch=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    images = next(loader.epoch(0)).images
    assert images.mean().item() == pytest.approx(0.5, abs=0.005)
    assert images.std().item() == pytest.approx(12**-0.5, abs=0.005)
