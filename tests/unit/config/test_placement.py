import pytest

from image_classification.config.placement import (
    accumulation,
    largest_per_device,
    nearest_global,
    nearest_per_device,
)
from image_classification.core.errors import ConfigError


@pytest.mark.parametrize(
    ("global_batch", "per_device", "world", "count"),
    [(2048, 256, 8, 1), (2048, 256, 1, 8), (1024, 64, 8, 2), (32, 32, 1, 1), (96, 8, 3, 4)],
)
def test_accumulation(global_batch: int, per_device: int, world: int, count: int) -> None:
    assert accumulation(global_batch, per_device, world) == count


def test_more_images_per_micro_batch_than_the_global_batch_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        accumulation(2048, 256, 16)
    message = caught.value.message
    assert "2048 / (256 x 16) = 0.5" in message
    assert "--batch-size 128" in message
    assert "--optimizer-batch-size 4096" in message
    assert "platform.num_devices=8" in message


def test_every_suggested_batch_works() -> None:
    for world in range(1, 20):
        for per_device in (1, 7, 30, 256):
            for size in nearest_per_device(2048, per_device, world):
                assert accumulation(2048, size, world) >= 1
            for whole in nearest_global(2048, per_device, world):
                assert accumulation(whole, per_device, world) >= 1


def test_nearest_batches_below_and_above() -> None:
    assert nearest_per_device(2048, 100, 8) == [64, 128]
    assert nearest_per_device(2048, 100, 3) == []
    assert nearest_global(2048, 100, 8) == [1600, 2400]
    assert nearest_global(32, 32, 2) == [64]


def test_largest_per_device() -> None:
    assert largest_per_device(32, 32, 2) == 16
    assert largest_per_device(896, 112, 7) == 64
    assert largest_per_device(2048, 256, 3) is None
