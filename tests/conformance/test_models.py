"""Every listed model keeps the same contract."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification import models
from image_classification.models.size import describe
from image_classification.models.weights import load_model, model_metadata, read_header, save_model

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
    """Each model once, with the running statistics of one batch, so that activations stay sane."""
    torch.manual_seed(0)
    model = models.build(request.param, NUM_CLASSES)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX))
    for norm in norms:
        norm.momentum = 0.1
    return request.param, model


def test_shape_counts_and_arithmetic_are_golden(named_model: tuple[str, nn.Module]) -> None:
    name, _ = named_model
    assert describe(name) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_every_parameter_learns(named_model: tuple[str, nn.Module]) -> None:
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

    def note_layout(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        layouts.append(output.is_contiguous(memory_format=torch.channels_last))

    with torch.no_grad():
        expected = model.eval()(images)
        model.to(memory_format=torch.channels_last)
        hook = model.layer3.register_forward_hook(note_layout)
        logits = model(images.to(memory_format=torch.channels_last))
    hook.remove()
    model.to(memory_format=torch.contiguous_format)
    assert layouts == [True]
    # Other kernels, other rounding: 152 random layers amplify it to 6e-4. Mixed-up values would
    # differ by the logits' own size.
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_a_saved_model_is_rebuilt_bit_for_bit(
    named_model: tuple[str, nn.Module], tmp_path: Path
) -> None:
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


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(models.list_models())
