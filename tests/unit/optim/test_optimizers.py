import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.amp.grad_scaler import GradScaler

from image_classification.config.schema import OptimConfig
from image_classification.core.errors import ConfigError
from image_classification.optim.optimizers import DECAY_RULES, build_optimizer, param_groups

SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.875, weight_decay=1e-2)
RMSPROP = OptimConfig(name="rmsprop", lr=0.01, momentum=0.9, weight_decay=1e-2)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    # Fused kernels must respect the strides.
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(steps):
        images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_sgd_equals_unfused_sgd(nesterov: bool) -> None:
    start = small_net()
    cfg = replace(SGD, nesterov=nesterov)
    fused_net, plain_net = copy.deepcopy(start), copy.deepcopy(start)
    fused = build_optimizer(param_groups(fused_net, 1e-2, "no_norm_bias"), cfg, "cpu")
    assert all(g["fused"] for g in fused.param_groups)
    plain = torch.optim.SGD(
        param_groups(plain_net, 1e-2, "no_norm_bias"),
        lr=0.1,
        momentum=0.875,
        nesterov=nesterov,
        fused=False,
        foreach=False,
    )
    torch.testing.assert_close(train(fused_net, fused), train(plain_net, plain))


def test_sgd_applies_weight_decay_per_group() -> None:
    net = nn.Linear(2, 2)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    optimizer = build_optimizer(param_groups(net, 0.5, "no_norm_bias"), SGD, "cpu")
    net.weight.grad, net.bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(net.bias.detach(), bias)


@pytest.mark.parametrize("cfg", [SGD, RMSPROP], ids=["sgd", "rmsprop"])
def test_an_overflow_in_the_first_step_has_no_effect(cfg: OptimConfig) -> None:
    def run(overflow_first: bool) -> torch.Tensor:
        weight = nn.Parameter(torch.ones(64))
        groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": 0.0}]
        # Freed memory full of NaN, which an uninitialized momentum buffer would contain.
        junk = [torch.full((64,), float("nan")) for _ in range(64)]
        del junk
        optimizer = build_optimizer(groups, cfg, "cpu")
        scaler = GradScaler("cpu", init_scale=4.0)
        gradients = [torch.full((64,), g) for g in ([float("inf")] * overflow_first + [4.0, 4.0])]
        for gradient in gradients:
            scale = float(scaler.scale(torch.ones(())))
            weight.grad = gradient * scale / 4.0
            scaler.step(optimizer)
            scaler.update()
        return weight.detach()

    assert torch.equal(run(overflow_first=True), run(overflow_first=False))


def test_sgd_has_its_state_from_the_start() -> None:
    net = small_net()
    optimizer = build_optimizer(param_groups(net, 1e-2, "all"), SGD, "cpu")
    for parameter in net.parameters():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert not buffer.any() and buffer.stride() == parameter.stride()


def test_sgd_without_momentum_has_no_state() -> None:
    net = small_net()
    optimizer = build_optimizer(param_groups(net, 0.0, "all"), replace(SGD, momentum=0.0), "cpu")
    train(net, optimizer, steps=1)
    assert all(s.get("momentum_buffer") is None for s in optimizer.state.values())


def test_rmsprop_adds_epsilon_outside_the_root() -> None:
    weight = nn.Parameter(torch.zeros(1))
    cfg = replace(RMSPROP, momentum=0.0, rmsprop_alpha=0.9, rmsprop_eps=0.01)
    optimizer = build_optimizer([{"params": [weight], "weight_decay": 0.0}], cfg, "cpu")
    assert all(g["foreach"] for g in optimizer.param_groups)
    weight.grad = torch.tensor([0.2])
    optimizer.step()
    mean_square = 0.1 * 0.2**2
    assert weight.item() == pytest.approx(-0.01 * 0.2 / (mean_square**0.5 + 0.01), rel=1e-6)


def test_lr_is_a_python_float() -> None:
    net = nn.Linear(1, 1)
    for cfg in (SGD, RMSPROP):
        optimizer = build_optimizer(param_groups(net, 0.0, "all"), cfg, "cpu")
        assert all(type(g["lr"]) is float for g in optimizer.param_groups)


def test_devices_without_a_fused_kernel_use_foreach() -> None:
    optimizer = build_optimizer(param_groups(nn.Linear(1, 1), 0.0, "all"), SGD, "hpu")
    assert all(g["foreach"] and not g["fused"] for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (replace(RMSPROP, nesterov=True), "rmsprop"),
        (replace(SGD, nesterov=True, momentum=0.0), "momentum"),
        (replace(SGD, name="sdg"), "sgd"),
    ],
)
def test_unusable_options_are_refused(cfg: OptimConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_optimizer(param_groups(nn.Linear(1, 1), 0.0, "all"), cfg, "cpu")


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return torchvision.models.resnet50()


def decayed_names(model: nn.Module, rule: str) -> set[str]:
    decayed = {id(parameter) for parameter in param_groups(model, 1e-4, rule)[0]["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in decayed}


@pytest.mark.parametrize("rule", DECAY_RULES)
def test_every_parameter_is_in_exactly_one_group(resnet50: nn.Module, rule: str) -> None:
    groups = param_groups(resnet50, 1e-4, rule)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in resnet50.parameters())
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]


def test_decay_rules_on_resnet50(resnet50: nn.Module) -> None:
    names = {name for name, _ in resnet50.named_parameters()}
    by_type = decayed_names(resnet50, "no_norm_bias")
    # 53 convolutions and the classifier's matrix.
    assert len(by_type) == 54
    assert all(name.endswith("weight") for name in by_type)
    assert not any("bn" in name or "downsample.1" in name for name in by_type)

    legacy = decayed_names(resnet50, "legacy_bn_name")
    # The four downsample norms (weight and bias) and fc.bias decay, too.
    assert legacy - by_type == {
        "fc.bias",
        *(f"layer{i}.0.downsample.1.{leaf}" for i in (1, 2, 3, 4) for leaf in ("weight", "bias")),
    }
    assert all("bn" in name for name in names - legacy)

    assert decayed_names(resnet50, "all") == names


def test_groups_keep_the_order_of_the_model(resnet50: nn.Module) -> None:
    order = {id(parameter): i for i, parameter in enumerate(resnet50.parameters())}
    for group in param_groups(resnet50, 1e-4, "legacy_bn_name"):
        indices = [order[id(parameter)] for parameter in group["params"]]
        assert indices == sorted(indices)


def test_no_norm_bias_knows_other_norm_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(4)
    )
    assert decayed_names(model, "no_norm_bias") == {"0.weight"}


def test_a_shared_parameter_is_in_one_group_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert len(param_groups(model, 0.1, "all")[0]["params"]) == 3


def test_unknown_decay_rule_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="legacy_bn_name"):
        param_groups(nn.Linear(1, 1), 0.1, "legacy_bn")
