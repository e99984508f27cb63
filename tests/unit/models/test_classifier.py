"""`create_model`, and what every model has besides its forward pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from image_classification import models
from image_classification.core.errors import CheckpointError, ConfigError
from image_classification.models.classifier import Classifier
from image_classification.models.weights import (
    load_model,
    load_pretrained,
    load_weights,
    model_metadata,
)
from tests.support.models import enliven, save_model


@pytest.fixture(autouse=True)
def _narrow(narrow_networks: None) -> None:
    """Small networks: nothing here depends on their width."""


def same_weights(model: torch.nn.Module, other: torch.nn.Module, but: str = "?") -> bool:
    mine, others = model.state_dict(), other.state_dict()
    return all(torch.equal(mine[key], others[key]) for key in mine if not key.startswith(but))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Classifier]:
    """A file of a resnet18 with 5 classes and another image size, and its model."""
    torch.manual_seed(1)
    model = models.build("resnet18", 5)
    path = tmp_path / "model.safetensors"
    preprocessing = models.Preprocessing(image_size=64, resize=72)
    save_model(path, model, model_metadata("resnet18", 5, preprocessing=preprocessing))
    return path, model


@torch.no_grad()
def test_head_of_features_is_the_forward_pass() -> None:
    model = enliven(models.build("se-resnet50", 3)).eval()
    images = torch.randn(2, 3, 64, 96)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 2, 3)
    assert torch.equal(model.forward_head(features), model(images))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))


def test_reset_classifier_keeps_every_other_weight() -> None:
    model, before = models.build("resnet18", 3), models.build("resnet18", 3)
    before.load_state_dict(model.state_dict())
    model.class_names = ["cat", "dog", "owl"]
    keys = list(model.state_dict())
    model.reset_classifier(8)
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 8)
    assert model.num_classes == 8
    assert model.class_names is None
    assert list(model.state_dict()) == keys
    assert same_weights(model, before, but="fc.")
    with pytest.raises(ConfigError, match="pre_logits=True"):
        model.reset_classifier(0)


def test_create_model_without_a_file_is_build() -> None:
    torch.manual_seed(4)
    built = models.build("resnet34", 6, init="fan_out")
    torch.manual_seed(4)
    created = models.create_model("resnet34", 6, init="fan_out", pretrained=False)
    assert same_weights(created, built)
    assert models.create_model("resnet18").num_classes == 1000
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        models.create_model("resnet18", pretrained=True)  # type: ignore[arg-type]


def test_pretrained_gives_weights_classes_and_preprocessing(
    saved: tuple[Path, Classifier],
) -> None:
    path, model = saved
    created = models.create_model("resnet18", pretrained=path)
    assert same_weights(created, model)
    assert (created.num_classes, created.preprocessing.image_size) == (5, 64)


def test_pretrained_with_other_classes_keeps_all_but_the_classifier(
    saved: tuple[Path, Classifier],
) -> None:
    path, model = saved
    created = models.create_model("resnet18", 2, pretrained=path)
    assert same_weights(created, model, but="fc.")
    assert created.fc.weight.shape[0] == created.num_classes == 2
    assert created.class_names is None


def test_pretrained_without_metadata(tmp_path: Path) -> None:
    model = models.build("resnet18", 4)
    save_model(tmp_path / "bare.safetensors", model, {})
    created = models.create_model("resnet18", pretrained=tmp_path / "bare.safetensors")
    assert same_weights(created, model)
    assert created.preprocessing == models.spec("resnet18").preprocessing


def test_pretrained_of_another_model_is_refused(saved: tuple[Path, Classifier]) -> None:
    path, _ = saved
    with pytest.raises(
        CheckpointError, match=r"holds resnet18, not resnet34: choose the model resnet18"
    ):
        models.create_model("resnet34", pretrained=path)
    # These two differ only in a stride, so their weights would fit.
    save_model(path, models.build("resnet50-v1", 5), model_metadata("resnet50-v1", 5))
    with pytest.raises(CheckpointError, match="holds resnet50-v1, not resnet50"):
        models.create_model("resnet50", pretrained=path)
    for load in (load_weights, partial(load_pretrained, classes=None)):
        with pytest.raises(CheckpointError, match="holds resnet50-v1, not resnet50"):
            load(models.build("resnet50", 5), path)


def test_loaded_model_has_the_files_preprocessing(saved: tuple[Path, Classifier]) -> None:
    path, _ = saved
    assert load_model(path).preprocessing == models.Preprocessing(image_size=64, resize=72)
