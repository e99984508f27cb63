import os
import re
from pathlib import Path

import pytest

from image_classification.core.class_folders import SPLITS
from image_classification.data.tools.pack import pack
from image_classification.doctor import data_set
from image_classification.doctor.data_set import check_data_set
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult
from image_classification.doctor.requirements import RunNeeds
from tests.support.doctor import context


def run(path: Path | str, num_classes: int | None = None) -> list[CheckResult]:
    doctor = context(data=str(path))
    doctor.needs = RunNeeds(num_classes=num_classes)
    return list(check_data_set(doctor))


def test_class_folders(own_image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_set, "_NUM_SAMPLES", 10)
    layout, sample = run(own_image_folder, 3)
    assert layout.status == sample.status == "ok"
    assert layout.found == f"{own_image_folder}: folder, train and val, 3 classes"
    assert re.fullmatch(
        r"10 of 10 train images decoded, \d+\.\d MB; reading [\d,]+ images/s, [\d,]+ MB/s; "
        r"decoding [\d,]+ images/s in one thread",
        sample.found,
    )


@pytest.mark.parametrize("data_format", ["webdataset", "tfrecord"])
def test_shards(own_image_folder: Path, tmp_path: Path, data_format: str) -> None:
    pack(own_image_folder, tmp_path / "packed", data_format, workers=0)
    layout, sample = run(tmp_path / "packed")
    assert f"packed: {data_format}, {' and '.join(SPLITS)}" in layout.found
    assert sample.status == "ok" and " val images decoded" in sample.found


def test_splits_of_different_formats(
    own_image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(own_image_folder, tmp_path / "packed", "tfrecord", workers=0)
    for file in (tmp_path / "packed").glob("*train*"):
        file.unlink()
    (tmp_path / "packed" / "train").symlink_to(own_image_folder / "train")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    layout, _ = run(tmp_path / "packed")
    assert layout.found.endswith(": train as folder, val as tfrecord, 3 classes, read-only")


def test_broken_images_are_counted_and_the_first_is_named(own_image_folder: Path) -> None:
    for number in range(12):
        (own_image_folder / "train" / "cat" / f"{number:03d}.JPEG").write_bytes(b"no image")
    _, check = run(own_image_folder)
    assert check.status == "fail" and "24 of 36" in check.found and "cat/000.JPEG" in check.found
    assert f"dataset check {own_image_folder}" in check.remedy


def test_data_that_a_run_cannot_use(own_image_folder: Path, tmp_path: Path) -> None:
    (absent,) = run(tmp_path / "absent")
    assert absent.status == "fail" and absent.found == f"no data set at {tmp_path}/absent"
    assert "docker run -v" in absent.remedy
    of_imagenet = tmp_path / "imagenet" / "val" / "n01440764"
    of_imagenet.mkdir(parents=True)
    (of_imagenet.parents[1] / "train" / "n01440764").mkdir(parents=True)
    (classes,) = run(tmp_path / "imagenet", 1000)
    assert classes.status == "fail" and "has 1 class folders" in classes.found
    assert run(own_image_folder, 1000)[0].status == "ok"  # one's own classes
    for file in (own_image_folder / "train").glob("*/*"):
        file.unlink()
    _, sample = run(own_image_folder)
    assert sample.status == "fail" and "have no images" in sample.found


@pytest.mark.parametrize(
    ("data", "found"), [(None, "neither --data nor --platform given"), ("synthetic",) * 2]
)
def test_no_data_set(data: str | None, found: str) -> None:
    (result,) = check_data_set(context(data=data))
    assert result.status == "skipped" and found in result.found


def test_time_limits() -> None:
    late = ProbeError("no answer within 60 s", is_late=True)
    (result,) = check_data_set(context(late, data="/mnt/dead"))
    assert result.status == "fail" and result.found == "/mnt/dead did not answer within 60 s"
    for data_format, status in (("folder", "fail"), ("tfrecord", "warn")):
        found = ("/data", {"train": data_format, "val": data_format}, "text")
        _, sample = check_data_set(context(found, late, data="/data"))
        assert sample.status == status
