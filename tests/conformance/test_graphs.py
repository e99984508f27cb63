"""TorchScript and ``torch.export`` on every listed model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from image_classification import models
from tests.support.models import enliven

# Torch advises torch.export in place of TorchScript, which still works.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")

NUM_CLASSES = 7
QUICK = {"resnet18"}


@pytest.fixture(
    scope="module",
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in models.list_models()
    ],
)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return enliven(models.build(request.param, NUM_CLASSES)).eval()


def images(count: int, side_px: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_script_equals_eager(model: nn.Module) -> None:
    scripted = torch.jit.script(model)
    # Another batch and image size each: nothing of the first call is fixed.
    for batch in (images(2), images(3, 96)):
        assert torch.equal(scripted(batch), model(batch))


def test_script_trains_as_eager(model: nn.Module) -> None:
    eager = copy.deepcopy(model).train()
    scripted = torch.jit.script(copy.deepcopy(model)).train()
    batch, labels = images(4), torch.tensor([0, 1, 2, 6])
    for network in (eager, scripted):
        nn.functional.cross_entropy(network(batch), labels).backward()
    expected = dict(eager.named_parameters())
    assert len(expected) == len(list(scripted.parameters()))
    for key, parameter in scripted.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad)
    for key, buffer in scripted.named_buffers():
        assert torch.equal(buffer, eager.get_buffer(key)), key


@torch.no_grad()
def test_trace_equals_eager(model: nn.Module) -> None:
    traced = torch.jit.trace(model, images(2))
    for batch in (images(2), images(3)):
        assert torch.equal(traced(batch), model(batch))


@torch.no_grad()
def test_export_equals_eager_for_any_batch(model: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
    exported = program.module()
    for inputs in (images(2), images(5)):
        assert torch.equal(exported(inputs), model(inputs))


def test_export_of_training_equals_eager(model: nn.Module) -> None:
    eager = copy.deepcopy(model).train()
    program = torch.export.export(copy.deepcopy(model).train(), (images(4),))
    exported = program.module()
    assert torch.equal(exported(images(4)), eager(images(4)))
    buffers = dict(exported.named_buffers())
    for key, buffer in eager.named_buffers():
        assert torch.equal(buffers[key], buffer), key


def test_script_keeps_class_names_and_sizes() -> None:
    model = models.build("resnet18", 2)
    model.class_names = ["cat", "dog"]
    scripted = torch.jit.script(model)
    assert (scripted.class_names, scripted.num_classes, scripted.num_features) == (
        ["cat", "dog"],
        2,
        512,
    )
