import pytest

from image_classification.core.errors import DataError
from image_classification.data.loaders import UndecodableImages
from image_classification.data.order import TrainOrder, ValOrder
from tests.support.loaders import loader_spec


def test_each_name_counts_once_and_keeps_its_first_reason() -> None:
    images = UndecodableImages(1000, 0.002)
    for _ in range(3):
        images.note({"train/a.JPEG": "first"})
    images.note({"train/b.JPEG": "x", "train/a.JPEG": "again"})
    assert images == {"train/a.JPEG": "first", "train/b.JPEG": "x"}
    with pytest.raises(DataError, match=r"3 of 1000 train images .* 0.200% .* third"):
        images.note({"train/c.JPEG": "third"})


def test_error_budgets_of_0_and_1() -> None:
    with pytest.raises(DataError, match="1 of 10"):
        UndecodableImages(10, 0.0).note({"a": "x"})
    UndecodableImages(10, 1.0).note({str(i): "x" for i in range(10)})


def test_batch_order_of_a_spec() -> None:
    changes = {"per_device_batch": 2, "accumulation": 3, "rank": 1, "world_size": 2, "seed": 9}
    train, val = (loader_spec("", split=split, **changes) for split in ("train", "val"))
    assert train.batch_order(40) == TrainOrder(40, 2, 3, rank=1, world_size=2, seed=9)
    assert val.batch_order(40) == ValOrder(40, 2, rank=1, world_size=2)
