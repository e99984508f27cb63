"""Mixed precision, and NVIDIA Apex: finding it, its amp and its fused SGD.

Apex's kernels and amp work on CUDA tensors only, so here a stand-in of the same interface takes its
place (tests/standins); tests/gpu has the real one.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from image_classification.config.schema import OptimConfig, RunConfig
from image_classification.core.errors import CheckpointError, ConfigError, DivergedError
from image_classification.core.types import Record, WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine import build, precision
from image_classification.engine.build import build_optimizer
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.precision import Apex, TorchAmp, find_apex, require_apex
from image_classification.engine.runs import Run, TrainingRun
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train
from image_classification.optim.optimizers import param_groups

STANDINS = Path(__file__).parents[2] / "standins"
CONV2D = F.conv2d
CPU = torch.device("cpu")
TODAY = Apex("0.1", is_nvidia=True, has_amp=False, has_kernels=True)
OLD = Apex("0.1", is_nvidia=True, has_amp=True, has_kernels=True)
BARE = Apex("0.1", is_nvidia=True, has_amp=True, has_kernels=False)
OTHER = Apex("0.9.10", is_nvidia=False, has_amp=False, has_kernels=False)
SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.875, weight_decay=1e-2, implementation="apex")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_loss_gives_non_finite_gradients(loss: float) -> None:
    weight = torch.ones(2, requires_grad=True)
    total = weight.sum() + loss
    total.backward(precision.initial_gradient(total))
    assert weight.grad is not None and torch.isnan(weight.grad).all()


def test_finite_loss_gives_unchanged_gradients() -> None:
    gradients = []
    for start in (False, True):
        weight = torch.linspace(-1, 1, 7, requires_grad=True)
        loss = (weight.exp() / 3).sum()
        loss.backward(precision.initial_gradient(loss) if start else None)
        gradients.append(weight.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a package ``apex`` with these parts on the path; importing it raises."""

    def make(*parts: str, kernels: bool = False, version: str = "") -> None:
        for part in ("", *parts):
            folder = tmp_path / "apex" / part
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
        if kernels:
            (tmp_path / "amp_C.py").write_text("raise AssertionError('imported')\n")
        if version:
            info = tmp_path / f"apex-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: apex\nVersion: {version}\n"
            )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "apex", raising=False)

    return make


def test_parts_are_found_without_an_import(install: Callable[..., None]) -> None:
    install("optimizers", "multi_tensor_apply", kernels=True, version="0.1")
    assert find_apex() == TODAY
    assert TODAY.describe() == "0.1 (fused optimizers)"
    install("amp")
    assert find_apex() == OLD
    assert OLD.describe() == "0.1 (fused optimizers, amp)"


def test_apex_built_without_kernels(install: Callable[..., None]) -> None:
    install("optimizers", "multi_tensor_apply", "amp")
    found = find_apex()
    assert found is not None
    assert found == Apex(None, is_nvidia=True, has_amp=True, has_kernels=False)
    assert found.describe() == "unknown version (no CUDA extensions, amp)"


def test_other_project_named_apex(install: Callable[..., None]) -> None:
    install("lib", "amp", version="0.9.10")
    found = find_apex()
    assert found is not None and not found.is_nvidia
    assert found.describe() == "0.9.10, another project's apex"


@pytest.fixture
def apex_config(small_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Resolve the small configuration for apex.amp, which a CPU's configuration refuses."""

    def make(loss_scale: float | str | None = "dynamic", **sections: Any) -> RunConfig:
        config = small_config(**{"run__validate": False, **sections})
        return replace(
            config, precision=replace(config.precision, amp_backend="apex", loss_scale=loss_scale)
        )

    return make


def with_apex_sgd(config: RunConfig) -> RunConfig:
    config = replace(config, precision=replace(config.precision, amp_backend="torch"))
    return replace(config, optim=replace(config.optim, implementation="apex"))


@pytest.mark.parametrize("sgd", [False, True], ids=["amp", "sgd"])
@pytest.mark.parametrize(
    ("apex", "words"),
    [
        (None, r"apex: NVIDIA Apex is not installed; .*APEX_COMMIT="),
        (OTHER, r"package apex \(0\.9\.10\) is not NVIDIA's.*pip uninstall apex"),
        (BARE, r"without its CUDA extensions \(amp_C\)"),
    ],
)
def test_missing_apex_is_one_error_before_the_data_is_opened(
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., TrainingRun],
    monkeypatch: pytest.MonkeyPatch,
    sgd: bool,
    apex: Apex | None,
    words: str,
) -> None:
    monkeypatch.setattr(build, "open_split", lambda *args: pytest.fail("the data was opened"))
    monkeypatch.setattr(precision, "find_apex", lambda: apex)
    config = with_apex_sgd(apex_config()) if sgd else apex_config()
    with pytest.raises(ConfigError, match=words) as caught:
        open_run(config)
    assert "leave it out" in caught.value.message


def test_apex_without_amp(
    apex_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_apex", lambda: TODAY)
    with pytest.raises(ConfigError, match=r"has no apex\.amp, .*APEX_COMMIT=e13873debc"):
        require_apex(apex_config())
    require_apex(with_apex_sgd(apex_config()))
    monkeypatch.setattr(precision, "find_apex", lambda: OLD)
    require_apex(apex_config())


@pytest.fixture
def amp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The replacement of apex.amp; checks that the run restored torch's functions."""
    monkeypatch.syspath_prepend(STANDINS)
    module = importlib.import_module("apex.amp")
    module.CALLS.clear()
    yield module
    assert F.conv2d is CONV2D, "the run did not give torch its functions back"
    for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def drive(run: TrainingRun) -> list[Record]:
    return list(train(run, StopRequest()))


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in run.parts.model.state_dict().items()}


def steps(records: list[Record]) -> list[Record]:
    return [r for r in records if r.kind == "step"]


@pytest.mark.slow
def test_training_keeps_float32_weights(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    run = open_run(apex_config(128.0), max_steps=6)
    records = drive(run)
    losses = [r.values["loss"] for r in steps(records)]
    assert losses[-1] < losses[0]
    assert [r.values["loss_scale"] for r in steps(records)] == [128.0] * 6
    assert {p.dtype for p in run.parts.model.parameters()} == {torch.float32}
    assert amp.CALLS == ["initialize"] + ["unscaled"] * 6


def is_rounded() -> bool:
    """Return whether a convolution rounds its input 2049 to float16."""
    image, weight = torch.full((1, 1, 1, 1), 2049.0), torch.ones(1, 1, 1, 1)
    return float(F.conv2d(image, weight)) == 2048.0


def test_casts_are_active_within_autocast_only(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    run = open_run(apex_config(), max_steps=1)
    assert not is_rounded()
    with run.parts.amp.autocast():
        assert is_rounded()
    assert not is_rounded()
    with pytest.raises(KeyError), run.parts.amp.autocast():
        raise KeyError
    assert not is_rounded()
    drive(run)
    assert not is_rounded(), "the optimizer's step turned them on"


def test_weights_changed_in_place_are_cast_again(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    run = open_run(apex_config())
    model, images = run.parts.model.eval(), torch.ones(1, 3, 32, 32)

    @torch.no_grad()
    def logits():
        with run.parts.amp.autocast():
            return model(images)

    before = logits()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
    assert before.count_nonzero() and not logits().count_nonzero()


def test_overflow_is_skipped_and_counted_and_halves_the_scale(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    run = open_run(apex_config(ema__decay=0.5), max_steps=1)
    # With this scale every float16 gradient overflows.
    run.parts.amp.load_state_dict({"loss_scaler0": {"loss_scale": 2.0**40, "unskipped": 0}})
    before, average = weights(run), dict(run.parts.ema.state_dict())
    average = {name: value.clone() for name, value in average.items()}
    records = drive(run)
    assert records[-1].kind == "end"
    assert run.progress.skipped == 1
    assert steps(records)[0].values["loss_scale"] == 2.0**39
    for name, parameter in run.parts.model.named_parameters():
        assert torch.equal(before[name], parameter), name
    for name, value in run.parts.ema.state_dict().items():
        assert torch.equal(average[name], value), name
    assert all(p.grad is None for p in run.parts.model.parameters())


def test_too_many_overflows_are_divergence(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    run = open_run(apex_config(), max_skipped_steps_in_a_row=3)
    run.parts.amp.load_state_dict({"loss_scaler0": {"loss_scale": 2.0**100, "unskipped": 0}})
    with pytest.raises(DivergedError):
        drive(run)
    assert run.progress.step == 3


def test_overflow_with_a_fixed_scale_ends_the_run(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    run = open_run(apex_config(2.0**60))
    with pytest.raises(DivergedError):
        drive(run)


@pytest.mark.slow
def test_micro_batches_are_unscaled_once(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    whole = open_run(apex_config(128.0, run__max_steps=1, batch__per_device=8))
    assert whole.config.batch.accumulation == 1
    parts_run = open_run(apex_config(128.0, run__max_steps=1, batch__per_device=2))
    amp.CALLS.clear()
    drive(parts_run)
    assert amp.CALLS == ["delayed"] * 3 + ["unscaled"]


@pytest.mark.slow
@pytest.mark.parametrize("loss_scale", ["dynamic", 128.0])
def test_resumed_run_equals_an_uninterrupted_one(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
    loss_scale: float | str,
) -> None:
    config = apex_config(loss_scale)
    straight = open_run(config, workspace=f"{config.run.workspace}-straight", max_steps=3)
    drive(straight)
    wanted, state = weights(straight), straight.parts.amp.state_dict()
    straight.close()
    first = open_run(config, max_steps=2)
    drive(first)
    saved = checkpoint.load(checkpoint.listed(first.checkpoints)[-1].path)
    assert saved.meta["scaler"] == first.parts.amp.state_dict()
    first.close()
    second = open_run(config, max_steps=3, resume="auto")
    drive(second)
    assert second.parts.amp.state_dict() == state
    for name, value in weights(second).items():
        assert torch.equal(wanted[name], value), name


def test_resume_with_another_backend_needs_allow_changes(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    small_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
) -> None:
    first = open_run(apex_config(1024.0), max_steps=2)
    drive(first)
    first.close()
    config = small_config(run__validate=False)
    with pytest.raises(CheckpointError, match=r"precision\.amp_backend 'apex' -> 'torch'"):
        drive(open_run(config, resume="auto"))
    allowed = open_run(config, resume="auto", allow_changes=True, max_steps=3)
    records = drive(allowed)
    assert [r.step for r in steps(records)] == [3]
    # Apex's loss scale is not used.
    assert allowed.parts.amp.state_dict() == {}


def test_model_is_prepared_before_ddp(amp, apex_config, monkeypatch: pytest.MonkeyPatch):
    order = amp.CALLS

    def wrapped(model, config, device):
        order.append("data_parallel")
        return torch.nn.Identity()

    monkeypatch.setattr(build, "data_parallel", wrapped)
    accelerator = get_accelerator("cpu")
    world = WorldInfo(rank=0, world_size=2)
    run = Run(apex_config(), world, accelerator, torch.device("cpu"), Path())
    build.build_parts(run)
    run.close()
    assert order == ["initialize", "data_parallel"]


def test_unloadable_apex_is_one_error(
    amp: Any,
    apex_config: Callable[..., RunConfig],
    open_run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("type torch.cuda.IntTensor not available")

    monkeypatch.setattr(amp, "initialize", broken)
    with pytest.raises(ConfigError, match=r"apex\.amp cannot be loaded .*IntTensor") as caught:
        open_run(apex_config())
    assert "\n" not in caught.value.message


def test_torchs_loss_scaler_with_apexs_optimizer(
    amp: Any,
    small_config: Callable[..., RunConfig],
) -> None:
    """An overflow in the first step leaves weights and buffers unchanged."""
    model = torch.nn.Linear(4, 2)
    config = replace(small_config().optim, implementation="apex", momentum=0.9)
    optimizer = build_optimizer([{"params": list(model.parameters())}], config, "cuda")
    accelerator = get_accelerator("cpu")
    scaling = TorchAmp(accelerator, "float32", accelerator.grad_scaler(8.0), optimizer)
    before, applied = model.weight.detach().clone(), []
    for factor in (float("inf"), 1.0):
        scaling.backward(model(torch.ones(1, 4)).sum() * factor, last=True)
        applied.append(bool(scaling.update(lambda **known: None)))
        optimizer.zero_grad()
        if factor != 1.0:
            assert torch.equal(model.weight, before)
            buffer = optimizer.state[model.weight]["momentum_buffer"]
            assert not buffer.count_nonzero()
    assert applied == [False, True]
    torch.testing.assert_close(model.weight.detach(), before - config.lr)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train_net(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range
) -> list[torch.Tensor]:
    for step in steps:
        torch.manual_seed(step)
        images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.usefixtures("amp")
@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"momentum": 0.0}])
def test_update_equals_torchs(settings: dict[str, Any]) -> None:
    cfg = replace(SGD, **settings)
    start = net()
    trained = []
    for implementation in ("torch", "apex"):
        model = copy.deepcopy(start)
        groups = param_groups(model, cfg.weight_decay, "no_norm_bias")
        optimizer = build_optimizer(groups, replace(cfg, implementation=implementation), "cuda")
        assert (type(optimizer).__name__ == "FusedSGD") == (implementation == "apex")
        assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-2, 0.0]
        trained.append(train_net(model, optimizer, range(5)))
    torch.testing.assert_close(trained[0], trained[1])


@pytest.mark.usefixtures("amp")
def test_momentum_continues_in_torchs_implementation() -> None:
    whole, halves = net(), net()
    groups = param_groups(whole, 1e-2, "no_norm_bias")
    wanted = train_net(
        whole, build_optimizer(groups, replace(SGD, implementation="torch"), "cpu"), range(4)
    )
    groups = param_groups(halves, 1e-2, "no_norm_bias")
    first = build_optimizer(groups, SGD, "cuda")
    train_net(halves, first, range(2))
    second = build_optimizer(groups, replace(SGD, implementation="torch"), "cpu")
    for parameter, state in first.state.items():
        assert list(state) == ["momentum_buffer"]
        second.state[parameter]["momentum_buffer"].copy_(state["momentum_buffer"])
    torch.testing.assert_close(train_net(halves, second, range(2, 4)), wanted)


@pytest.mark.usefixtures("amp")
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
def test_other_optimizers_and_devices_are_refused(
    settings: dict[str, Any], device: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build_optimizer([], replace(SGD, **settings), device)


def test_unloadable_fused_sgd_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = param_groups(net(), 1e-2, "no_norm_bias")

    def broken(name: str) -> None:
        raise ImportError("amp_C.so: undefined symbol")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=r"cannot be loaded with torch 2.* \(amp_C.so: undefined"):
        build_optimizer(groups, SGD, "cuda")
