import pytest

from image_classification.core.errors import DataError
from image_classification.data.loaders.protocol import UndecodableImages


def test_each_name_counts_once_and_keeps_its_first_reason() -> None:
    images = UndecodableImages(1000, 0.002)
    for _ in range(3):
        images.note({"train/a.JPEG": "first"})
    images.note({"train/b.JPEG": "x", "train/a.JPEG": "again"})
    assert images == {"train/a.JPEG": "first", "train/b.JPEG": "x"}
    with pytest.raises(DataError, match=r"3 of 1000 train images .* 0.200% .* third"):
        images.note({"train/c.JPEG": "third"})


def test_limits_of_the_budget() -> None:
    with pytest.raises(DataError, match="1 of 10"):
        UndecodableImages(10, 0.0).note({"a": "x"})
    UndecodableImages(10, 1.0).note({str(i): "x" for i in range(10)})
