"""The real Apex, where it is installed: its fused SGD, and apex.amp where it still has one."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from image_classification.config.schema import OptimConfig
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine.build import build_optimizer
from image_classification.engine.precision import Amp, ApexAmp, TorchAmp, find_apex
from image_classification.optim.optimizers import param_groups

APEX = find_apex()
USABLE = APEX is not None and APEX.is_nvidia and APEX.has_kernels
SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.875, weight_decay=1e-2)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device"),
    pytest.mark.skipif(not USABLE, reason="no Apex with CUDA extensions"),
]
needs_amp = pytest.mark.skipif(APEX is None or not APEX.has_amp, reason="Apex without apex.amp")


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    net = nn.Sequential(*layers).cuda()
    # mypy does not know this argument of nn.Module.to.
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def optimizer(model: nn.Module, implementation: str, **settings) -> torch.optim.Optimizer:
    cfg = replace(SGD, implementation=implementation, **settings)
    return build_optimizer(param_groups(model, 1e-2, "no_norm_bias"), cfg, "cuda")


def steps(model: nn.Module, optim: torch.optim.Optimizer, amp: Amp, boom: int = -1) -> list[bool]:
    """Take six steps of two micro-batches; the loss of step ``boom`` is infinite."""
    applied = []
    for step in range(6):
        for micro in range(2):
            torch.manual_seed(10 * step + micro)
            images = torch.randn(4, 8, 6, 6, device="cuda").to(memory_format=torch.channels_last)
            with amp.autocast():
                loss = F.cross_entropy(model(images).float(), torch.arange(4, device="cuda"))
            amp.backward(loss * (float("inf") if step == boom else 0.5), last=micro == 1)
        taken = amp.update(lambda **known: None)
        applied.append(taken is None or bool(taken))
        optim.zero_grad()
    return applied


def torch_amp(optim: torch.optim.Optimizer, dtype: str, scale: float | str | None) -> TorchAmp:
    accelerator = get_accelerator("cuda")
    return TorchAmp(accelerator, dtype, accelerator.grad_scaler(scale), optim)


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"momentum": 0.0}])
@pytest.mark.parametrize(("dtype", "scale"), [("float32", None), ("float16", 128.0)])
def test_fused_sgd_is_torchs(settings: dict[str, Any], dtype: str, scale: float | None) -> None:
    start, trained = net(), []
    for implementation in ("torch", "apex"):
        model = copy.deepcopy(start)
        optim = optimizer(model, implementation, **settings)
        steps(model, optim, torch_amp(optim, dtype, scale))
        trained.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-4, atol=1e-5)


def test_an_overflow_in_the_first_step_leaves_fused_sgd_as_it_was() -> None:
    model = net()
    optim = optimizer(model, "apex")
    applied = steps(model, optim, torch_amp(optim, "float16", "dynamic"), boom=0)
    assert applied == [False] + [True] * 5
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.fixture
def opened() -> Iterator[list[Amp]]:
    amps: list[Amp] = []
    yield amps
    for amp in reversed(amps):
        amp.close()


@needs_amp
@pytest.mark.parametrize("implementation", ["torch", "apex"])
@pytest.mark.parametrize("scale", ["dynamic", 128.0])
def test_apex_amp_is_torchs_autocast(opened, implementation: str, scale: float | str) -> None:
    start = net()
    with_torch, with_apex = copy.deepcopy(start), copy.deepcopy(start)
    optim = optimizer(with_torch, "torch")
    steps(with_torch, optim, torch_amp(optim, "float16", scale))
    optim = optimizer(with_apex, implementation)
    opened.append(ApexAmp(with_apex, optim, scale, torch.device("cuda")))
    steps(with_apex, optim, opened[0])
    torch.testing.assert_close(
        list(with_apex.parameters()), list(with_torch.parameters()), rtol=1e-2, atol=1e-3
    )
    assert (torch.ones(2, device="cuda").double() + torch.ones(2, device="cuda")).is_cuda


@needs_amp
def test_apex_amp_leaves_an_overflow_out(opened) -> None:
    model = net()
    optim = optimizer(model, "torch")
    opened.append(ApexAmp(model, optim, "dynamic", torch.device("cuda")))
    assert steps(model, optim, opened[0], boom=2) == [True, True, False, True, True, True]
    assert opened[0].state_dict()["loss_scaler0"]["loss_scale"] == 2.0**15
