"""With torchvision's weights mapped across, the logits are torchvision's to 1e-5."""

import pytest
import torch
import torchvision
from torch import nn

from image_classification import models
from image_classification.core.errors import ConfigError
from image_classification.models.weights import from_torchvision, load_state

QUICK = ["resnet18", "resnet34", "resnet50", "resnext50-32x4d"]
SLOW = ["resnet101", "resnet152", "resnext101-32x4d", "resnext101-64x4d"]


def torchvisions(name: str) -> nn.Module:
    known = models.spec(name).torchvision_name
    if known is not None:
        return torchvision.models.get_model(known)
    # A ResNeXt that torchvision can express but does not name.
    assert name == "resnext101-32x4d"
    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_logits_are_torchvisions(name: str, enliven) -> None:
    torch.manual_seed(5)
    theirs = enliven(torchvisions(name)).eval()
    with torch.device("meta"):
        ours = models.build(name)
    ours = ours.to_empty(device="cpu").eval()
    load_state(ours, theirs.state_dict(), where="torchvision")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    # The comparison means something: logits of order one that depend on the image.
    assert 0.1 < expected.std() < 10
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_every_model_torchvision_names_is_covered() -> None:
    named = {n for n in models.list_models() if models.spec(n).torchvision_name is not None}
    assert named | {"resnext101-32x4d"} == {*QUICK, *SLOW}


def test_gradients_are_torchvisions(enliven) -> None:
    torch.manual_seed(5)
    theirs = enliven(torchvision.models.get_model("resnet50", num_classes=10))
    ours = models.build("resnet50", 10)
    load_state(ours, from_torchvision("resnet50", theirs.state_dict()), where="torchvision")
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    for model in (theirs, ours):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-4, atol=1e-6)
    for key, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(key))


def test_files_without_batch_counters_map_too() -> None:
    theirs = torchvision.models.get_model("resnet18").state_dict()
    old = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    assert len(old) == len(theirs) - 20
    model = models.build("resnet18")
    load_state(model, from_torchvision("resnet18", old), where="old file")
    for key, value in theirs.items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["resnet50-v1", "resnext101-32x4d", "se-resnext101-32x4d"])
def test_models_torchvision_lacks_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"torchvision has no {name}; it has resnet18, "):
        from_torchvision(name, {})
