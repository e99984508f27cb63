"""TorchScript and ``torch.export`` on every listed model.

`make test-long` tests the models as they are. `make test` tests narrow ones with at most two blocks
per stage, since further blocks are like the second, and trains one model per kind of block.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from image_classification import models
from image_classification.models.classifier import Classifier
from tests.conftest import STEM_CHANNELS
from tests.support.models import enliven

# Torch advises torch.export in place of TorchScript, which still works.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")

FULL = os.environ.get("FAULTS") == "full"
NUM_CLASSES = 7
NAMES = models.list_models()
TRAINED = NAMES if FULL else ["resnet18", "se-resnext50-32x4d"]


def slow(names: list[str]) -> list[Any]:
    return [n if n == "resnet18" else pytest.param(n, marks=pytest.mark.slow) for n in names]


def build(name: str) -> Classifier:
    torch.manual_seed(0)
    if FULL:
        return enliven(models.build(name, NUM_CLASSES))
    spec: Any = models.spec(name)
    spec = replace(spec, blocks=tuple(min(count, 2) for count in spec.blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("image_classification.models.resnet.STEM_CHANNELS", STEM_CHANNELS)
        network = models.FAMILIES.get(spec.family)(spec, models.ModelOptions(NUM_CLASSES))
    return enliven(network)


@pytest.fixture(scope="module", params=slow(NAMES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param).eval()


def images(count: int, side_px: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_script_equals_eager(model: nn.Module) -> None:
    scripted = torch.jit.script(model)
    # Another batch and image size each: nothing of the first call is fixed.
    for batch in (images(2), images(3, 96)):
        assert torch.equal(scripted(batch), model(batch))


@torch.no_grad()
def test_trace_equals_eager(model: nn.Module) -> None:
    traced = torch.jit.trace(model, images(2), check_trace=False)
    for batch in (images(2), images(3)):
        assert torch.equal(traced(batch), model(batch))


@torch.no_grad()
def test_export_equals_eager_for_any_batch(model: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
    exported = program.module()
    for inputs in (images(2), images(5)):
        assert torch.equal(exported(inputs), model(inputs))


@pytest.mark.parametrize("name", slow(TRAINED))
def test_script_trains_as_eager(name: str) -> None:
    eager = build(name).train()
    scripted = torch.jit.script(copy.deepcopy(eager))
    batch, labels = images(4), torch.tensor([0, 1, 2, 6])
    for network in (eager, scripted):
        nn.functional.cross_entropy(network(batch), labels).backward()
    expected = dict(eager.named_parameters())
    assert len(expected) == len(list(scripted.parameters()))
    for key, parameter in scripted.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad)
    for key, buffer in scripted.named_buffers():
        assert torch.equal(buffer, eager.get_buffer(key)), key


@pytest.mark.parametrize("name", slow(TRAINED))
def test_export_of_training_equals_eager(name: str) -> None:
    eager = build(name).train()
    program = torch.export.export(copy.deepcopy(eager), (images(4),))
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
