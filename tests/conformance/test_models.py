"""Requirements on every listed model."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification import models
from image_classification.models.weights import load_model, model_metadata, read_header
from tests.support.models import describe, enliven, save_model

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
NUM_CLASSES = 7
IMAGE_SIZE_PX = 64
LARGE = {"resnet101", "resnet152", "resnext101-32x4d", "resnext101-64x4d"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
        for name in models.list_models()
    ],
)
def named_model(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return request.param, enliven(models.build(request.param, NUM_CLASSES))


def test_tensors_and_counts_equal_the_golden_file(named_model: tuple[str, nn.Module]) -> None:
    name, _ = named_model
    assert describe(name) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_every_parameter_has_a_gradient(named_model: tuple[str, nn.Module]) -> None:
    _, model = named_model
    torch.manual_seed(1)
    images = torch.randn(4, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    logits = model.train()(images)
    assert logits.shape == (4, NUM_CLASSES)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 6])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    model.zero_grad()


def test_channels_last_gives_the_same_logits(named_model: tuple[str, nn.Module]) -> None:
    _, model = named_model
    torch.manual_seed(2)
    images = torch.randn(2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    layouts = []

    def record_layout(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        layouts.append(output.is_contiguous(memory_format=torch.channels_last))

    with torch.no_grad():
        expected = model.eval()(images)
        # mypy does not know this argument of nn.Module.to.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        hook = model.get_submodule("layer3").register_forward_hook(record_layout)
        logits = model(images.to(memory_format=torch.channels_last))
    hook.remove()
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert layouts == [True]
    # Kernels round differently, which 152 random layers amplify to 6e-4. Wrong values would differ
    # by the size of the logits.
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_saved_model_is_rebuilt_exactly(named_model: tuple[str, nn.Module], tmp_path: Path) -> None:
    name, model = named_model
    path = tmp_path / "model.safetensors"
    save_model(path, model, model_metadata(name, NUM_CLASSES))
    assert read_header(path).name == name
    loaded = load_model(path)
    saved, read = model.state_dict(), loaded.state_dict()
    assert list(read) == list(saved)
    assert all(torch.equal(read[key], saved[key]) for key in saved)
    images = torch.randn(1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_golden_files_are_of_listed_models() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(models.list_models())
