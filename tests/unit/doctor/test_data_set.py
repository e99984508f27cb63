import os
from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.tools.pack import pack
from image_classification.doctor.data_set import (
    Layout,
    Sampled,
    check_layout,
    check_sample,
    look,
    sample,
)


def test_class_folders(own_image_folder: Path) -> None:
    layout = look(str(own_image_folder), "auto", 3)
    assert layout.formats == {"train": "folder", "val": "folder"} and layout.num_classes == 3
    check = check_layout(layout)
    assert check.status == "ok" and "folder, train and val, 3 classes" in check.found
    sampled = sample(layout.root, "train", "folder", count=10)
    assert sampled.num_images == 10 and sampled.broken == ()
    assert sampled.num_bytes > 10 * 100 and sampled.read_s > 0 and sampled.decode_s > 0
    assert check_sample(sampled, layout.root).found.startswith("10 of 10 train images decoded")


@pytest.mark.parametrize("layout", ["webdataset", "tfrecord"])
def test_shards(own_image_folder: Path, tmp_path: Path, layout: str) -> None:
    pack(own_image_folder, tmp_path / "packed", layout, workers=0)
    found = look(str(tmp_path / "packed"), "auto", None)
    assert set(found.formats.values()) == {layout}
    sampled = sample(found.root, "val", layout, count=5)
    assert sampled.num_images == 5 and sampled.broken == ()


def test_broken_images_are_counted_and_the_first_is_named(own_image_folder: Path) -> None:
    for number in range(12):
        (own_image_folder / "train" / "cat" / f"{number:03d}.JPEG").write_bytes(b"no image")
    sampled = sample(str(own_image_folder), "train", "folder", count=50)
    assert sampled.num_images == 36 and len(sampled.broken) == 12
    check = check_sample(sampled, str(own_image_folder))
    assert check.status == "fail" and "24 of 36" in check.found and "cat/000.JPEG" in check.found
    assert f"dataset check {own_image_folder}" in check.remedy


def test_what_a_run_cannot_use_is_refused_as_the_run_would(
    own_image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no data set at"):
        look(str(tmp_path / "gone"), "auto", None)
    with pytest.raises(DataError, match="3"):
        look(str(own_image_folder), "auto", 1000)
    for file in (own_image_folder / "train").glob("*/*"):
        os.unlink(file)
    with pytest.raises(DataError, match="hold no images"):
        sample(str(own_image_folder), "train", "folder")


def test_a_read_only_mount_is_fine() -> None:
    check = check_layout(Layout("/imagenet", {"train": "folder", "val": "tfrecord"}, None, False))
    assert check.status == "ok"
    assert check.found == "/imagenet: train as folder, val as tfrecord, read-only"


def test_speeds_have_units() -> None:
    check = check_sample(Sampled("val", 50, 5_000_000, 0.1, 0.25, ()), "/imagenet")
    assert check.found == (
        "50 of 50 val images decoded, 5.0 MB; reading 500 images/s, 50 MB/s; decoding 200 images/s"
        " in one thread"
    )
