import re

import pytest

from image_classification.config.placement import accumulation
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
    assert "--devices 8 on one node" in message


@pytest.mark.parametrize(
    ("global_batch", "per_device", "world", "suggested"),
    [
        (2048, 100, 8, "--batch-size 64 or 128; --optimizer-batch-size 1600 or 2400"),
        (2048, 100, 3, "these work: --optimizer-batch-size 1800 or 2100"),
        (32, 32, 2, "--batch-size 16; --optimizer-batch-size 64"),
    ],
)
def test_the_nearest_batches_that_work_are_suggested(
    global_batch: int, per_device: int, world: int, suggested: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        accumulation(global_batch, per_device, world)
    assert suggested in caught.value.message


@pytest.mark.parametrize("per_device", [7, 30, 255])
@pytest.mark.parametrize("world", [1, 2, 3, 7, 8, 16])
def test_every_suggestion_works(per_device: int, world: int) -> None:
    with pytest.raises(ConfigError) as caught:
        accumulation(2048, per_device, world)
    options = dict(re.findall(r"--(batch-size|optimizer-batch-size) ([^;]*)", caught.value.message))
    for option, text in options.items():
        for batch in map(int, text.split(" or ")):
            arguments = (2048, batch) if option == "batch-size" else (batch, per_device)
            assert accumulation(*arguments, world) >= 1
    assert "optimizer-batch-size" in options
