import numpy as np
import pytest

from image_classification.core.errors import DataError
from image_classification.data.order import (
    PADDING,
    TrainOrder,
    ValOrder,
    sample_order,
    sample_random,
)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    order = sample_order(3, 0, 1000)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(1000))
    assert np.array_equal(order, sample_order(3, 0, 1000))
    assert not np.array_equal(order, sample_order(3, 1, 1000))
    assert not np.array_equal(order, sample_order(4, 0, 1000))


def test_order_equals_the_recorded_one() -> None:
    """A checkpoint resumed by a later release must see the same images."""
    assert sample_order(0, 0, 8).tolist() == [7, 6, 3, 2, 4, 1, 5, 0]
    assert sample_random(0, 1, 2).random() == 0.3075654464649973


def test_streams_of_one_seed_differ() -> None:
    draws = {
        sample_random(seed, epoch, index).random()
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 1)
    }
    assert len(draws) == 8


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_world_and_accumulation_share_one_micro_batch_order(
    world_size: int, accumulation: int
) -> None:
    num_images, batch = 53, 3
    order = sample_order(5, 2, num_images)
    orders = [
        TrainOrder(num_images, batch, accumulation, rank, world_size, seed=5)
        for rank in range(world_size)
    ]
    per_rank = [order_of_rank.batches(2) for order_of_rank in orders]
    assert {order_of_rank.steps_per_epoch for order_of_rank in orders} == {4}
    assert {rows.shape for rows in per_rank} == {(4 * accumulation, batch)}
    interleaved = np.stack(per_rank, axis=1).reshape(-1)
    assert interleaved.tolist() == order[: 4 * 12].tolist()


def test_start_step_skips_whole_optimizer_steps() -> None:
    train = TrainOrder(50, 2, 3, rank=1, world_size=2, seed=0)
    assert train.steps_per_epoch == 4
    whole = train.batches(1)
    for step in range(5):
        assert np.array_equal(train.batches(1, step), whole[step * 3 :])


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, -1), (0, 5)])
def test_positions_outside_the_epoch_are_refused(epoch: int, step: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        TrainOrder(50, 2, 3, rank=0, world_size=2, seed=0).batches(epoch, step)


@pytest.mark.parametrize("num_images", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_each_validation_image_is_valid_once(num_images: int, world_size: int, batch: int) -> None:
    per_rank = [
        ValOrder(num_images, batch, rank, world_size).batches(0) for rank in range(world_size)
    ]
    assert len({rows.shape for rows in per_rank}) == 1
    seen = np.concatenate([rows.reshape(-1) for rows in per_rank])
    assert sorted(seen[seen != PADDING]) == list(range(num_images))
    # No rank has a batch too many: the last one holds an image somewhere.
    assert any((rows[-1] != PADDING).any() for rows in per_rank)


def test_fewer_images_than_a_global_batch_raises_an_error() -> None:
    with pytest.raises(DataError, match=r"63 train images .* 64 \(8 per device x 2 .* x 4 devices"):
        TrainOrder(63, 8, 2, rank=0, world_size=4, seed=0)
