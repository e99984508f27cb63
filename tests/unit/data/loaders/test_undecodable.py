import pytest
import torch

from image_classification.core.errors import DataError
from image_classification.data.loaders.device_prefetch import replace_rows
from image_classification.data.loaders.protocol import Undecodable


def test_names_count_once() -> None:
    lost = Undecodable(1000, 0.002)
    for _ in range(3):
        lost.note({"train/a.JPEG": "first"})
    lost.note({"train/b.JPEG": "x", "train/a.JPEG": "again"})
    assert lost == {"train/a.JPEG": "first", "train/b.JPEG": "x"}
    with pytest.raises(DataError, match=r"3 of 1000 train images .* 0.200% .* third"):
        lost.note({"train/c.JPEG": "third"})


def test_no_budget_ends_with_the_first() -> None:
    with pytest.raises(DataError, match="1 of 10"):
        Undecodable(10, 0.0).note({"a": "x"})
    Undecodable(10, 1.0).note({str(i): "x" for i in range(10)})


@pytest.mark.parametrize(
    ("lost", "expected"),
    [((), [0, 1, 2, 3]), ((1,), [0, 2, 2, 3]), ((3,), [0, 1, 2, 0]), ((2, 0, 3), [1, 1, 1, 1])],
)
def test_the_next_decoded_row_takes_the_place(lost: tuple[int, ...], expected: list[int]) -> None:
    labels = torch.arange(4)
    images = torch.arange(4)[:, None, None, None].expand(4, 3, 2, 2).clone()
    replace_rows(images, labels, lost)
    assert labels.tolist() == expected
    assert images[:, 2, 1, 1].tolist() == expected


def test_no_row_left() -> None:
    with pytest.raises(ValueError, match="no row is left"):
        replace_rows(torch.zeros(2, 3), torch.zeros(2), (0, 1))
