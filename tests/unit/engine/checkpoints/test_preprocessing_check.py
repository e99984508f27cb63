"""Weights remember how their images were made, and say so when that changes."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from image_classification.config.schema import DataConfig
from image_classification.core.errors import CheckpointError
from image_classification.core.types import Decoding
from image_classification.data.loaders import BACKENDS, DECODING
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.resume_checks import (
    decoding_warnings,
    preprocessing_warnings,
)
from image_classification.engine.modes import MODES
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train
from image_classification.models import build
from image_classification.models.spec import Preprocessing
from image_classification.models.weights import model_metadata, read_header, save_model

DATA = DataConfig(image_size=64, resize=72, backend="pytorch")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    header = model_metadata(
        "resnet18", 5, preprocessing=Preprocessing.of(DATA), decoding=DECODING["pytorch"]
    )
    save_model(path, build("resnet18", 5), header)
    return path


def test_every_backend_has_a_decoding() -> None:
    assert sorted(DECODING) == sorted(BACKENDS)


def test_same_preprocessing_gives_no_warning(weights: Path) -> None:
    assert preprocessing_warnings(weights, DATA) == []
    assert preprocessing_warnings(weights, replace(DATA, backend="dali-cpu")) == []


def test_another_resize_is_named_with_the_remedy(weights: Path) -> None:
    (warning,) = preprocessing_warnings(weights, replace(DATA, resize=80, antialias=False))
    assert "resize 72 -> 80, antialias True -> False" in warning
    assert "--set data.resize=72 --set data.antialias=true" in warning
    (warning,) = preprocessing_warnings(weights, replace(DATA, mean=(0.5, 0.5, 0.5)))
    assert "--set data.mean=[0.485,0.456,0.406]" in warning


def test_another_decoder_is_named_with_its_backends(weights: Path) -> None:
    (warning,) = preprocessing_warnings(weights, replace(DATA, backend="dali-gpu"))
    assert "libjpeg-turbo" in warning
    assert "--data-backend dali-cpu or pytorch" in warning
    assert decoding_warnings(weights, DATA) == []


def test_another_resize_and_decoder_are_both_named(weights: Path) -> None:
    warnings = preprocessing_warnings(weights, replace(DATA, backend="synthetic", resize=80))
    assert len(warnings) == 2


def test_weights_without_metadata_give_a_warning(weights: Path) -> None:
    save_file(load_file(weights), weights)
    (warning,) = preprocessing_warnings(weights, DATA)
    assert "does not say how" in warning


@pytest.mark.parametrize("bad", ["{", "[]", '{"decoder": "x"}', '{"decoder": 1, "resampler": "x"}'])
def test_unusable_decoding_metadata_is_refused(weights: Path, bad: str) -> None:
    metadata = model_metadata("resnet18", 5, decoding=Decoding("a", "b"))
    save_file(load_file(weights), weights, metadata={**metadata, "decoding": bad})
    with pytest.raises(CheckpointError, match="unusable model metadata"):
        read_header(weights)


def test_evaluation_warns_of_other_preprocessing(small_config, open_run, tmp_path):
    list(train(open_run(small_config(), max_steps=4), StopRequest()))
    saved = checkpoint.listed(tmp_path / "run" / "checkpoints")[-1]
    assert read_header(checkpoint.weights_file(saved.path)).decoding == DECODING["pytorch"]

    def messages(**sections: object) -> list[str]:
        folder = str(tmp_path / "evaluation")
        config = small_config(mode="evaluate", run__workspace=folder, **sections)
        run = open_run(config, resume=str(tmp_path / "run"))
        records = list(MODES["evaluate"].records(run, StopRequest()))
        return [r.values["message"] for r in records if r.kind == "warning"]

    assert messages() == []
    (resized,) = messages(data__interpolation="bicubic")
    assert "interpolation bilinear -> bicubic" in resized
    file = str(checkpoint.weights_file(saved.path))
    run = open_run(small_config(mode="evaluate", data__resize=40, model__pretrained_from_file=file))
    records = list(MODES["evaluate"].records(run, StopRequest()))
    assert any("resize" in r.values["message"] for r in records if r.kind == "warning")


def test_resume_warns_of_another_decoder(small_config, open_run, monkeypatch):
    ours = DECODING["pytorch"]
    monkeypatch.setitem(DECODING, "pytorch", DECODING["dali-gpu"])
    list(train(open_run(small_config(), max_steps=2), StopRequest()))
    monkeypatch.setitem(DECODING, "pytorch", ours)
    records = list(train(open_run(small_config(), resume="auto", max_steps=4), StopRequest()))
    (warning,) = [r.values["message"] for r in records if r.kind == "warning"]
    assert "--data-backend dali-gpu gives the same ones" in warning
