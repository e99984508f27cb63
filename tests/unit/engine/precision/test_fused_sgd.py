"""Apex's fused SGD, by a stand-in of its interface (tests/standins): its kernels need a GPU."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from image_classification.config.schema import OptimConfig
from image_classification.core.errors import ConfigError
from image_classification.engine.build import build_optimizer
from image_classification.engine.precision import apex
from image_classification.optim.optimizers import param_groups

SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.875, weight_decay=1e-2, implementation="apex")


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "standins")
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    for step in steps:
        torch.manual_seed(step)
        images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"momentum": 0.0}])
def test_update_equals_torchs(settings: dict) -> None:
    cfg = replace(SGD, **settings)
    start = net()
    trained = []
    for implementation in ("torch", "apex"):
        model = copy.deepcopy(start)
        groups = param_groups(model, cfg.weight_decay, "no_norm_bias")
        optimizer = build_optimizer(groups, replace(cfg, implementation=implementation), "cuda")
        assert (type(optimizer).__name__ == "FusedSGD") == (implementation == "apex")
        assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-2, 0.0]
        trained.append(train(model, optimizer, range(5)))
    torch.testing.assert_close(trained[0], trained[1])


@pytest.mark.usefixtures("standin")
def test_momentum_continues_in_torchs_implementation() -> None:
    whole, halves = net(), net()
    groups = param_groups(whole, 1e-2, "no_norm_bias")
    wanted = train(
        whole, build_optimizer(groups, replace(SGD, implementation="torch"), "cpu"), range(4)
    )
    groups = param_groups(halves, 1e-2, "no_norm_bias")
    first = build_optimizer(groups, SGD, "cuda")
    train(halves, first, range(2))
    second = build_optimizer(groups, replace(SGD, implementation="torch"), "cpu")
    for parameter, state in first.state.items():
        assert list(state) == ["momentum_buffer"]
        second.state[parameter]["momentum_buffer"].copy_(state["momentum_buffer"])
    torch.testing.assert_close(train(halves, second, range(2, 4)), wanted)


@pytest.mark.usefixtures("standin")
def test_momentum_buffers_exist_before_the_first_step_in_the_parameters_layout() -> None:
    model = net()
    optimizer = build_optimizer(param_groups(model, 1e-2, "no_norm_bias"), SGD, "cuda")
    for parameter in model.parameters():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert buffer.stride() == parameter.stride() and not buffer.count_nonzero()


@pytest.mark.parametrize(
    ("settings", "device", "words"),
    [
        ({"name": "rmsprop"}, "cuda", "has no rmsprop.*--optimizer sgd"),
        ({}, "cpu", "needs an NVIDIA GPU, not cpu"),
    ],
)
def test_other_optimizers_and_devices_are_refused(settings: dict, device: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_optimizer([], replace(SGD, **settings), device)


def test_missing_or_unloadable_apex_is_one_error(
    standin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = param_groups(net(), 1e-2, "no_norm_bias")
    with monkeypatch.context() as patch:
        patch.setattr(apex, "find_apex", lambda: None)
        with pytest.raises(ConfigError, match="NVIDIA Apex is not installed"):
            build_optimizer(groups, SGD, "cuda")

    def broken(name: str) -> None:
        raise ImportError("amp_C.so: undefined symbol")

    monkeypatch.setattr(apex.importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=r"cannot be loaded \(amp_C.so: undefined.*for torch 2"):
        build_optimizer(groups, SGD, "cuda")
