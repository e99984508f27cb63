from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.tools.pack import pack
from image_classification.doctor.data_set import (
    Layout,
    Sample,
    check_layout,
    check_sample,
    find_layout,
    read_sample,
)


def test_class_folders(own_image_folder: Path) -> None:
    layout = find_layout(str(own_image_folder), "auto", 3)
    assert layout.formats == {"train": "folder", "val": "folder"} and layout.num_classes == 3
    check = check_layout(layout)
    assert check.status == "ok" and "folder, train and val, 3 classes" in check.found
    sample = read_sample(layout.root, "train", "folder", count=10)
    assert sample.num_images == 10 and sample.broken == []
    assert sample.num_bytes > 10 * 100 and sample.read_s > 0 and sample.decode_s > 0
    assert check_sample(sample, layout.root).found.startswith("10 of 10 train images decoded")


@pytest.mark.parametrize("data_format", ["webdataset", "tfrecord"])
def test_shards(own_image_folder: Path, tmp_path: Path, data_format: str) -> None:
    pack(own_image_folder, tmp_path / "packed", data_format, workers=0)
    layout = find_layout(str(tmp_path / "packed"), "auto", None)
    assert set(layout.formats.values()) == {data_format}
    sample = read_sample(layout.root, "val", data_format, count=5)
    assert sample.num_images == 5 and sample.broken == []


def test_broken_images_are_counted_and_the_first_is_named(own_image_folder: Path) -> None:
    for number in range(12):
        (own_image_folder / "train" / "cat" / f"{number:03d}.JPEG").write_bytes(b"no image")
    sample = read_sample(str(own_image_folder), "train", "folder", count=50)
    assert sample.num_images == 36 and len(sample.broken) == 12
    check = check_sample(sample, str(own_image_folder))
    assert check.status == "fail" and "24 of 36" in check.found and "cat/000.JPEG" in check.found
    assert f"dataset check {own_image_folder}" in check.remedy


def test_data_that_a_run_cannot_use_is_refused(own_image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set at"):
        find_layout(str(tmp_path / "absent"), "auto", None)
    with pytest.raises(DataError, match="3"):
        find_layout(str(own_image_folder), "auto", 1000)
    for file in (own_image_folder / "train").glob("*/*"):
        file.unlink()
    with pytest.raises(DataError, match="have no images"):
        read_sample(str(own_image_folder), "train", "folder")


def test_a_read_only_data_set_is_ok() -> None:
    formats = {"train": "folder", "val": "tfrecord"}
    check = check_layout(Layout("/imagenet", formats, None, is_writable=False))
    assert check.status == "ok"
    assert check.found == "/imagenet: train as folder, val as tfrecord, read-only"


def test_speeds_have_units() -> None:
    check = check_sample(Sample("val", 50, 5_000_000, 0.1, 0.25, []), "/imagenet")
    assert check.found == (
        "50 of 50 val images decoded, 5.0 MB; reading 500 images/s, 50 MB/s; decoding 200 images/s"
        " in one thread"
    )
