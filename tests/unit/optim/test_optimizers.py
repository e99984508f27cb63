import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from image_classification.config.schema import OptimConfig
from image_classification.core.errors import ConfigError
from image_classification.optim.optimizers import build_optimizer, param_groups

SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.875, weight_decay=1e-2)
RMSPROP = OptimConfig(name="rmsprop", lr=0.01, momentum=0.9, weight_decay=1e-2)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return net.to(memory_format=torch.channels_last)  # fused kernels must honour the strides


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(steps):
        images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_sgd_equals_plain_sgd(nesterov: bool) -> None:
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


def test_sgd_decays_by_the_group() -> None:
    net = nn.Linear(2, 2)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    optimizer = build_optimizer(param_groups(net, 0.5, "no_norm_bias"), SGD, "cpu")
    net.weight.grad, net.bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(net.bias.detach(), bias)


@pytest.mark.parametrize("cfg", [SGD, RMSPROP], ids=["sgd", "rmsprop"])
def test_an_overflow_in_the_first_step_leaves_no_trace(cfg: OptimConfig) -> None:
    def run(overflow_first: bool) -> torch.Tensor:
        weight = nn.Parameter(torch.ones(64))
        groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": 0.0}]
        # Freed memory full of NaN: what an uninitialised momentum buffer would be made of.
        junk = [torch.full((64,), float("nan")) for _ in range(64)]
        del junk
        optimizer = build_optimizer(groups, cfg, "cpu")
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        gradients = [torch.full((64,), g) for g in ([float("inf")] * overflow_first + [4.0, 4.0])]
        for gradient in gradients:
            scale = float(scaler.scale(torch.ones(())))
            weight.grad = gradient * scale / 4.0
            scaler.step(optimizer)
            scaler.update()
        return weight.detach()

    assert torch.equal(run(overflow_first=True), run(overflow_first=False))


def test_sgd_has_its_whole_state_from_the_start() -> None:
    net = small_net()
    optimizer = build_optimizer(param_groups(net, 1e-2, "all"), SGD, "cpu")
    for parameter in net.parameters():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert not buffer.any() and buffer.stride() == parameter.stride()


def test_sgd_without_momentum_keeps_no_state() -> None:
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


def test_lr_is_a_python_float_a_schedule_can_set() -> None:
    net = nn.Linear(1, 1)
    for cfg in (SGD, RMSPROP):
        optimizer = build_optimizer(param_groups(net, 0.0, "all"), cfg, "cpu")
        assert all(type(g["lr"]) is float for g in optimizer.param_groups)


def test_devices_without_a_fused_kernel_get_foreach() -> None:
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
def test_bad_options(cfg: OptimConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_optimizer(param_groups(nn.Linear(1, 1), 0.0, "all"), cfg, "cpu")
