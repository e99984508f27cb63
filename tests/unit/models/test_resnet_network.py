import math
import random

import pytest
import torch
from torch import nn

from image_classification import models
from image_classification.models.resnet_network import Bottleneck
from image_classification.models.size import count_parameters


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
def test_parameter_counts_are_the_published_ones(name, options, num_parameters) -> None:
    assert count_parameters(on_meta(name, **options)) == num_parameters


@pytest.mark.parametrize(
    ("name", "first", "middle"), [("resnet50", 1, 2), ("resnet50-v1", 2, 1), ("se-resnet50", 1, 2)]
)
def test_stride_is_where_the_version_has_it(name: str, first: int, middle: int) -> None:
    for path, block in bottlenecks(on_meta(name)):
        strided = path.endswith(".0") and not path.startswith("layer1")
        assert block.conv1.stride[0] == (first if strided else 1), path
        assert block.conv2.stride[0] == (middle if strided else 1), path
        assert block.conv3.stride[0] == 1, path
        assert (block.downsample is not None) == path.endswith(".0"), path
        if block.downsample is not None:
            assert block.downsample[0].stride[0] == (2 if strided else 1), path


def test_the_versions_differ_in_their_results(enliven) -> None:
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
def test_a_zero_last_gamma_makes_residual_branches_vanish(name: str, zero: bool) -> None:
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


def test_zero_last_gamma_touches_nothing_else() -> None:
    model = models.build("se-resnet50", zero_init_last_gamma=True)
    zeros = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any()
    ]
    assert zeros == [f"{path}.bn3" for path, _ in bottlenecks(model)]


def test_num_classes_reaches_the_model() -> None:
    model = models.build("resnet18", num_classes=7).eval()
    assert model.fc.weight.shape == (7, 512)
    with torch.no_grad():
        assert model(torch.randn(3, 3, 32, 32)).shape == (3, 7)


@pytest.mark.parametrize("name", ["resnet18", "resnext50-32x4d", "se-resnet50"])
@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_initial_weights_have_the_deviation_of_the_source(name: str, init: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, init=init)
    num_convs = 0
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            out_channels, in_per_group, height, width = module.weight.shape
            fan = height * width * (in_per_group if init == "fan_in" else out_channels)
            expected = math.sqrt(2 / fan)
            # Five deviations of the estimate itself.
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


def test_the_torch_seed_alone_decides_the_weights() -> None:
    def weights(seed: int, python_seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        random.seed(python_seed)
        return models.build("resnet18", 10).state_dict()

    first, again, other = weights(3, 0), weights(3, 1), weights(4, 0)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("name", ["resnet18", "se-resnet50"])
def test_the_network_is_one_graph(name: str) -> None:
    model = models.build(name, 10).eval()
    images = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
