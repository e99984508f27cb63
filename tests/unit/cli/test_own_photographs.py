"""``launch.py`` on a folder of class folders without train/ and val/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.reporting.sinks import read_metrics
from tests.conftest import CLASSES, write_images
from tests.support.cli import launch as main

NAMES = ["--model=resnet18", "--precision=FP32", "--platform=CPU"]
SHORT = [
    "--epochs=2",
    "--warmup=0",
    "--image-size=32",
    "--batch-size=8",
    "--optimizer-batch-size=8",
    "--set=data.workers=0",
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", per_class=10, seed=3)
    return tmp_path / "photos"


@pytest.fixture
def trained(photos: Path, tmp_path: Path, narrow_networks: None, no_pictures: None) -> Path:
    run = tmp_path / "run"
    (photos / "cat" / "notes.txt").touch()
    argv = [*NAMES, "--mode=convergence", *SHORT, str(photos), f"--workspace={run}"]
    assert main(argv) == 0
    return run


def evaluated(tmp_path: Path, *argv: str) -> Path:
    folder = tmp_path / "evaluation"
    names = [*NAMES, "--mode=evaluate", "--image-size=32", "--set=data.workers=0"]
    assert main([*names, *argv, f"--workspace={folder}"]) == 0
    return folder


def warnings(run: Path) -> list[str]:
    return [r.values["message"] for r in read_metrics(run / "metrics.jsonl") if r.kind == "warning"]


def test_a_run_records_its_split_and_what_it_decided(
    trained: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split = json.loads((trained / "split.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (24, 6)
    assert sorted({name.split("/")[0] for name in split["val"]}) == list(CLASSES)
    config = yaml.safe_load((trained / "config.yml").read_text())
    assert config["name"]["recipe"] == "photos"
    assert config["model"]["num_classes"] == 3
    assert config["data"]["exif_orientation"] is True
    report = json.loads((trained / "report.json").read_text())
    assert report["results"]["validation"]["images"] == 6
    assert report["results"]["validation"]["top5"] is None  # there are three classes
    text = " ".join(warnings(trained))
    assert "24 train and 6 validation images by data.val_fraction 0.2" in text
    assert f"skipped 1 file in {photos}: 1 .txt" in text
    assert "top-5" not in capfd.readouterr().out
    assert "op-5" not in (trained / "report.html").read_text()


def test_an_evaluation_uses_the_images_that_its_run_held_out(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    held_out = json.loads((trained / "split.json").read_text())["val"]
    write_images(tmp_path / "more", per_class=12, seed=4)
    for name in CLASSES:  # photographs that were added since the run
        for number in (10, 11):
            file = f"{name}/{number:03d}.JPEG"
            (tmp_path / "more" / file).rename(photos / file)
    folder = evaluated(tmp_path, f"--resume={trained}", str(photos))
    config = yaml.safe_load((folder / "config.yml").read_text())
    assert config["data"]["split_file"] == str(trained / "split.json")
    report = json.loads((folder / "report.json").read_text())
    assert report["results"]["validation"]["images"] == len(held_out)


def test_other_photographs_are_all_evaluated(trained: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "others", per_class=5, seed=5)
    for file in (tmp_path / "others").glob("*/*"):
        file.rename(file.with_stem(f"other-{file.stem}"))
    folder = evaluated(tmp_path, f"--resume={trained}", str(tmp_path / "others"))
    report = json.loads((folder / "report.json").read_text())
    assert report["results"]["validation"]["images"] == 15
    assert any("all images of" in text and "are evaluated" in text for text in warnings(folder))


def test_a_run_continues_with_its_split(trained: Path, photos: Path) -> None:
    before = (trained / "split.json").read_text()
    argv = [*NAMES, "--mode=convergence", *SHORT, str(photos), f"--workspace={trained}"]
    assert main([*argv, "--resume=auto"]) == 0
    after = json.loads((trained / "split.json").read_text())
    assert {k: after[k] for k in ("train", "val")} == {
        k: json.loads(before)[k] for k in ("train", "val")
    }


def test_added_photographs_are_not_trained_on_silently(
    trained: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "000.JPEG").rename(photos / "cat" / "new.JPEG")
    (photos / "dog" / "000.JPEG").unlink()
    argv = [*NAMES, "--mode=convergence", *SHORT, str(photos), f"--workspace={trained}"]
    assert main([*argv, "--resume=auto"]) == 2
    assert "24 train images -> 23" in capfd.readouterr().err


def test_explain_says_where_the_values_come_from(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*NAMES, "--mode=convergence", str(photos), "--explain"]) == 0
    out = capsys.readouterr().out
    assert f"from the class folders of {photos}" in out
    assert f"recipe photos, as {photos} is your own data" in out


def test_own_data_are_recognized(photos: Path, image_folder: Path, tmp_path: Path) -> None:
    def resolved(platform: str, path: Path, **settings: Any) -> RunConfig:
        return resolve("resnet50", "FP32", "convergence", platform, data=str(path), **settings)

    own = resolved("DGX1V", image_folder)
    assert (own.model.num_classes, own.data.exif_orientation) == (3, True)
    assert own.names.recipe == "250e"  # the published recipe, as the platform has no other
    assert resolved("CPU", photos, recipe="8e").names.recipe == "8e"
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    part_of_imagenet = resolved("DGX1V", tmp_path)
    assert part_of_imagenet.model.num_classes == 1000
    assert not part_of_imagenet.data.exif_orientation
    assert not resolve("resnet50", "FP32", "convergence", "DGX1V").data.exif_orientation


def test_contradicting_number_of_classes(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*NAMES, "--mode=convergence", str(photos), "--num_classes=7"]) == 2
    assert "contradicts the 3 class folders" in capfd.readouterr().err


def test_a_fraction_without_effect_is_said(
    image_folder: Path, tmp_path: Path, narrow_networks: None
) -> None:
    run = tmp_path / "run"
    argv = [*NAMES, "--mode=benchmark_data", *SHORT, "--epochs=1", str(image_folder)]
    assert main([*argv, "--set=data.val_fraction=0.3", f"--workspace={run}"]) == 0
    assert any("data.val_fraction has no effect" in text for text in warnings(run))
