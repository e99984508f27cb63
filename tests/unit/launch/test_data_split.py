"""Which split is used to evaluate or continue a run on a folder of class folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.data.formats.split import SPLIT_FILE
from image_classification.launch.data_split import save_split, use_split_of_run
from tests.conftest import write_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", per_class=5, seed=3)
    return tmp_path / "photos"


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yml").touch()
    save_split(config_of("convergence", photos, None).data, folder)
    return folder


def config_of(mode: str, data: Path, run: Path | None, **overrides: Any) -> RunConfig:
    names = ("resnet18", "FP32", mode, "CPU")
    settings = {f"data.{name}": value for name, value in overrides.items()}
    if run is not None:
        settings["run.resume"] = str(run)
    return resolve(*names, data=str(data), overrides=settings)


def test_the_runs_split_is_used_after_its_folder_was_moved(run: Path, photos: Path) -> None:
    moved = photos.rename(photos.with_name("elsewhere"))
    for mode in ("evaluate", "convergence"):
        config = use_split_of_run(config_of(mode, moved, run))
        assert config.data.split_file == str(run / SPLIT_FILE)


def test_another_folder_with_the_same_names_is_evaluated_whole(run: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    write_images(others, per_class=7, seed=4)
    held_out = json.loads((run / SPLIT_FILE).read_text())["val"]
    assert all((others / name).exists() for name in held_out)
    config = use_split_of_run(config_of("evaluate", others, run))
    assert (config.data.split_file, config.data.val_fraction) == (None, 1.0)
    assert "is the split of other images" in config.warnings[-1]


def test_a_fraction_that_the_runs_split_replaces_is_noted(run: Path, photos: Path) -> None:
    config = use_split_of_run(config_of("evaluate", photos, run, val_fraction=0.5))
    assert config.data.split_file == str(run / SPLIT_FILE)
    assert "data.val_fraction has no effect" in config.warnings[-1]
    same = use_split_of_run(config_of("evaluate", photos, run, val_fraction=0.2))
    assert not any("no effect" in warning for warning in same.warnings)
