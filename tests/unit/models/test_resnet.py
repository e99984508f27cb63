import math
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from image_classification import models
from image_classification.core.errors import ConfigError
from image_classification.models import MODELS
from image_classification.models.resnet import Bottleneck
from image_classification.models.size import count_parameters
from image_classification.models.weights import load_state
from tests.support.models import enliven

FAMILY = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50-v1",
    "resnext50-32x4d",
    "resnext101-32x4d",
    "resnext101-64x4d",
    "se-resnet50",
    "se-resnext50-32x4d",
    "se-resnext101-32x4d",
]

QUICK = ["resnet18", "resnet34", "resnet50", "resnext50-32x4d"]
SLOW = ["resnet101", "resnet152", "resnext101-32x4d", "resnext101-64x4d"]


def test_models_are_listed_in_order() -> None:
    assert models.list_models() == FAMILY


def test_listing_models_does_not_import_torch() -> None:
    script = (
        "import sys; from image_classification import models; "
        "names = models.list_models(); [models.spec(n).preprocessing for n in names]; "
        "assert len(names) >= 12; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize("name", FAMILY)
def test_spec_describes_the_model(name: str) -> None:
    spec = models.spec(name)
    assert spec.name == name
    assert "arXiv:" in spec.paper
    assert spec.description
    assert spec.has_se == name.startswith("se-")
    assert (spec.preprocessing.image_size, spec.preprocessing.resize) == (224, 256)
    assert spec.preprocessing.interpolation == "bilinear"
    assert spec.preprocessing.mean == (0.485, 0.456, 0.406)
    assert spec.preprocessing.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("call", [models.spec, models.build])
def test_unknown_name_suggests_the_nearest(call) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'resnet5O'; did you mean 'resnet50'\?"):
        call("resnet5O")


def test_registering_a_name_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        MODELS.add("resnet50", MODELS.get("resnet50"))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101-32x4d"])
def test_se_reduction_without_se_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'fixed16' does not apply to {name}"):
        models.build(name, se_reduction="fixed16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "fanin"}, r"unknown model.init 'fanin'; did you mean 'fan_in'\?"),
        ({"se_reduction": "fixed"}, r"unknown model.se_reduction 'fixed'; did you mean 'fixed16'"),
        ({"num_classes": 0}, "model.num_classes must be at least 1, not 0"),
    ],
)
def test_unusable_option_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build("se-resnet50", **options)


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **options)


def bottlenecks(model: nn.Module) -> list[tuple[str, Bottleneck]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, Bottleneck)]


@pytest.mark.parametrize(
    ("name", "options", "num_parameters"),
    [
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("resnet50-v1", {}, 25_557_032),
        ("resnet101", {}, 44_549_160),
        ("resnet152", {}, 60_192_808),
        ("resnext50-32x4d", {}, 25_028_904),
        ("resnext101-32x4d", {}, 44_177_704),
        ("resnext101-64x4d", {}, 83_455_272),
        ("se-resnext101-32x4d", {}, 48_955_416),
        ("se-resnext101-32x4d", {"se_reduction": "fixed16"}, 45_251_128),
        ("resnet50", {"num_classes": 1001}, 25_559_081),
        ("resnext101-32x4d", {"num_classes": 1001}, 44_179_753),
        ("se-resnext101-32x4d", {"num_classes": 1001}, 48_957_465),
    ],
)
def test_parameter_counts_are_as_published(name, options, num_parameters) -> None:
    assert count_parameters(on_meta(name, **options)) == num_parameters


@pytest.mark.parametrize(
    ("name", "first", "middle"), [("resnet50", 1, 2), ("resnet50-v1", 2, 1), ("se-resnet50", 1, 2)]
)
def test_stride_position_of_each_version(name: str, first: int, middle: int) -> None:
    for path, block in bottlenecks(on_meta(name)):
        strided = path.endswith(".0") and not path.startswith("layer1")
        assert block.conv1.stride[0] == (first if strided else 1), path
        assert block.conv2.stride[0] == (middle if strided else 1), path
        assert block.conv3.stride[0] == 1, path
        assert (block.downsample is not None) == path.endswith(".0"), path
        if block.downsample is not None:
            conv = block.downsample[0]
            assert isinstance(conv, nn.Conv2d)
            assert conv.stride[0] == (2 if strided else 1), path


def test_versions_give_different_logits() -> None:
    torch.manual_seed(0)
    v1_5, v1 = models.build("resnet50"), models.build("resnet50-v1")
    enliven(v1_5)
    v1.load_state_dict(v1_5.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(v1_5.eval()(images), v1.eval()(images), atol=1e-3)


@pytest.mark.parametrize("name", ["se-resnet50", "se-resnext50-32x4d", "se-resnext101-32x4d"])
@pytest.mark.parametrize(
    ("se_reduction", "units"), [("paper", (16, 32, 64, 128)), ("fixed16", (16, 16, 16, 16))]
)
def test_squeeze_widths(name: str, se_reduction: str, units: tuple[int, ...]) -> None:
    for path, block in bottlenecks(on_meta(name, se_reduction=se_reduction)):
        stage = int(path[len("layer")])
        channels = 256 * 2 ** (stage - 1)
        assert block.se is not None
        assert block.se.squeeze.weight.shape == (units[stage - 1], channels), path
        assert block.se.expand.weight.shape == (channels, units[stage - 1]), path
        assert block.se.squeeze.bias is not None
        assert block.se.expand.bias is not None


def test_se_gates_the_branch_before_the_addition() -> None:
    torch.manual_seed(0)
    block = bottlenecks(models.build("se-resnet50"))[1][1].eval()
    assert block.se is not None
    x = torch.randn(2, 256, 8, 8)
    with torch.no_grad():
        branch = block.conv1(x)
        branch = block.conv2(torch.relu(block.bn1(branch)))
        branch = block.bn3(block.conv3(torch.relu(block.bn2(branch))))
        units = torch.relu(branch.mean((2, 3)) @ block.se.squeeze.weight.T + block.se.squeeze.bias)
        gate = torch.sigmoid(units @ block.se.expand.weight.T + block.se.expand.bias)
        expected = torch.relu(x + branch * gate[:, :, None, None])
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
        assert gate.std() > 0.01


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "se-resnet50"])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_last_gamma_disables_residual_branches(name: str, zero: bool) -> None:
    torch.manual_seed(0)
    model = models.build(name, num_classes=10, zero_init_last_gamma=zero)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for path, module in model.named_modules():
            in_a_branch = path.startswith("layer") and "downsample" not in path
            if in_a_branch and isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.normal_(std=0.1)
        after = model(images)
    assert torch.equal(before, after) == zero


def test_zero_last_gamma_changes_only_the_last_norms() -> None:
    model = models.build("se-resnet50", zero_init_last_gamma=True)
    zeros = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any()
    ]
    assert zeros == [f"{path}.bn3" for path, _ in bottlenecks(model)]


def test_num_classes_reaches_the_model() -> None:
    model = models.build("resnet18", num_classes=7).eval()
    assert model.state_dict()["fc.weight"].shape == (7, 512)
    with torch.no_grad():
        assert model(torch.randn(3, 3, 32, 32)).shape == (3, 7)


@pytest.mark.parametrize("name", ["resnet18", "resnext50-32x4d", "se-resnet50"])
@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_initial_weights_have_the_specified_deviation(name: str, init: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, init=init)
    num_convs = 0
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            out_channels, in_per_group, height, width = module.weight.shape
            fan = height * width * (in_per_group if init == "fan_in" else out_channels)
            expected = math.sqrt(2 / fan)
            # Five standard errors of the estimate.
            error = 5 * expected / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, abs=error), path
            assert abs(module.weight.mean().item()) < 5 * expected / module.weight.numel() ** 0.5
            assert module.bias is None, path
            num_convs += 1
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), path
            assert not module.bias.any(), path
            assert (module.eps, module.momentum) == (1e-5, 0.1), path
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for values in (module.weight, module.bias):
                assert values.abs().max() <= bound, path
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert num_convs >= 20


def test_weights_depend_only_on_the_torch_seed() -> None:
    def weights(seed: int, python_seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        random.seed(python_seed)
        return models.build("resnet18", 10).state_dict()

    first, again, other = weights(3, 0), weights(3, 1), weights(4, 0)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("name", ["resnet18", "se-resnet50"])
def test_network_compiles_to_one_graph(name: str) -> None:
    model = models.build(name, 10).eval()
    images = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


def torchvision_model(name: str) -> nn.Module:
    known = models.spec(name).torchvision_name
    if known is not None:
        return torchvision.models.get_model(known)
    # torchvision has no name for this ResNeXt, but can build it.
    assert name == "resnext101-32x4d"
    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_logits_equal_torchvisions(name: str) -> None:
    torch.manual_seed(5)
    theirs = enliven(torchvision_model(name)).eval()
    with torch.device("meta"):
        ours = models.build(name)
    ours = ours.to_empty(device="cpu").eval()
    load_state(ours, theirs.state_dict(), where="torchvision")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    # Logits are of order one and depend on the image.
    assert 0.1 < expected.std() < 10
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_every_torchvision_model_is_compared() -> None:
    named = {n for n in models.list_models() if models.spec(n).torchvision_name is not None}
    assert named | {"resnext101-32x4d"} == {*QUICK, *SLOW}


def test_gradients_equal_torchvisions() -> None:
    torch.manual_seed(5)
    theirs = enliven(torchvision.models.get_model("resnet50", num_classes=10))
    ours = models.build("resnet50", 10)
    load_state(ours, theirs.state_dict(), where="torchvision")
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    for model in (theirs, ours):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-4, atol=1e-6)
    for key, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(key))
