"""Training through ``apex.amp``: how it is called, resumed and left again.

``apex.amp`` works on CUDA tensors only, so here a stand-in of the same interface takes its place
(tests/standins); tests/gpu has the real one.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from image_classification.core.errors import CheckpointError, ConfigError, DivergedError
from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine import build
from image_classification.engine.build import build_optimizer
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.precision import apex as amp_apex
from image_classification.engine.precision.torch_amp import TorchAmp
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train

STANDINS = Path(__file__).parents[3] / "standins"
CONV2D = F.conv2d


@pytest.fixture
def amp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for apex.amp, and torch's functions given back afterwards."""
    monkeypatch.syspath_prepend(STANDINS)
    module = importlib.import_module("apex.amp")
    module.CALLS.clear()
    yield module
    assert F.conv2d is CONV2D, "the run did not give torch its functions back"
    for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


@pytest.fixture
def apex_config(small_config):
    def make(loss_scale: float | str | None = "dynamic", **sections: Any) -> Any:
        config = small_config(**{"run__validate": False, **sections})
        # Resolving refuses apex on a CPU, rightly.
        precision = replace(config.precision, amp_backend="apex", loss_scale=loss_scale)
        return replace(config, precision=precision)

    return make


def drive(run):
    return list(train(run, StopRequest()))


def weights(run):
    return {k: v.clone() for k, v in run.parts.model.state_dict().items()}


def steps(records):
    return [r for r in records if r.kind == "step"]


@pytest.mark.slow
def test_training_keeps_float32_weights(amp, apex_config, open_run):
    run = open_run(apex_config(128.0), max_steps=6)
    records = drive(run)
    losses = [r.values["loss"] for r in steps(records)]
    assert losses[-1] < losses[0]
    assert [r.values["loss_scale"] for r in steps(records)] == [128.0] * 6
    assert {p.dtype for p in run.parts.model.parameters()} == {torch.float32}
    assert amp.CALLS == ["initialize"] + ["unscaled"] * 6


def is_rounded() -> bool:
    """Whether a convolution sees float16's 11 bits of 2049."""
    image, weight = torch.full((1, 1, 1, 1), 2049.0), torch.ones(1, 1, 1, 1)
    return float(F.conv2d(image, weight)) == 2048.0


def test_casts_are_active_within_autocast_only(amp, apex_config, open_run):
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


def test_weights_changed_in_place_are_cast_again(amp, apex_config, open_run):
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


def test_overflow_is_skipped_and_counted_and_halves_the_scale(amp, apex_config, open_run):
    run = open_run(apex_config(ema__decay=0.5), max_steps=1)
    # A scale no float16 gradient can bear.
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


def test_too_many_overflows_are_divergence(amp, apex_config, open_run):
    run = open_run(apex_config(), max_skipped_steps_in_a_row=3)
    run.parts.amp.load_state_dict({"loss_scaler0": {"loss_scale": 2.0**100, "unskipped": 0}})
    with pytest.raises(DivergedError):
        drive(run)
    assert run.progress.step == 3


def test_overflow_with_a_fixed_scale_ends_the_run(amp, apex_config, open_run):
    run = open_run(apex_config(2.0**60))
    with pytest.raises(DivergedError):
        drive(run)


@pytest.mark.slow
def test_micro_batches_are_unscaled_once(amp, apex_config, open_run):
    """With a power of two for a scale, four parts of a step only round otherwise than one."""
    whole = open_run(apex_config(128.0, run__max_steps=1, batch__per_device=8))
    assert whole.config.batch.accumulation == 1
    parts_run = open_run(apex_config(128.0, run__max_steps=1, batch__per_device=2))
    amp.CALLS.clear()
    drive(parts_run)
    assert amp.CALLS == ["delayed"] * 3 + ["unscaled"]


@pytest.mark.slow
@pytest.mark.parametrize("loss_scale", ["dynamic", 128.0])
def test_resumed_run_equals_an_uninterrupted_one(amp, apex_config, open_run, loss_scale):
    config = apex_config(loss_scale)
    straight = open_run(
        replace(config, run=replace(config.run, workspace=config.run.workspace + "-straight")),
        max_steps=3,
    )
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


def test_resume_with_another_backend_needs_allow_changes(amp, apex_config, small_config, open_run):
    first = open_run(apex_config(1024.0), max_steps=2)
    drive(first)
    first.close()
    config = small_config(run__validate=False)
    with pytest.raises(CheckpointError, match=r"precision\.amp_backend 'apex' -> 'torch'"):
        drive(open_run(config, resume="auto"))
    allowed = open_run(config, resume="auto", allow_changes=True, max_steps=3)
    records = drive(allowed)
    assert [r.step for r in steps(records)] == [3]
    # Of Apex's loss scale nothing is taken over.
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


def test_unloadable_apex_is_one_error(amp, apex_config, open_run, monkeypatch):
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("type torch.cuda.IntTensor not available")

    monkeypatch.setattr(amp, "initialize", broken)
    with pytest.raises(ConfigError, match=r"apex\.amp cannot be loaded .*IntTensor") as caught:
        open_run(apex_config())
    assert "\n" not in caught.value.message


def test_missing_apex_is_found_before_the_data_is_opened(apex_config, open_run, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(build, "open_split", lambda *args: opened.append("data"))
    monkeypatch.setattr(amp_apex, "find_apex", lambda: None)
    with pytest.raises(ConfigError, match=r"precision\.amp_backend apex: NVIDIA Apex is not"):
        open_run(apex_config())
    with pytest.raises(ConfigError, match="NVIDIA Apex is not installed"):
        amp_apex.open_apex_amp(torch.nn.Identity(), None, None, torch.device("cpu"))
    config = apex_config()
    config = replace(config, precision=replace(config.precision, amp_backend="torch"))
    config = replace(config, optim=replace(config.optim, implementation="apex"))
    with pytest.raises(ConfigError, match=r"optim\.implementation apex: NVIDIA Apex is not"):
        open_run(config)
    assert opened == []


def test_torchs_loss_scaler_with_apexs_optimizer(amp, small_config):
    """An overflow in the very first step leaves weights and buffers as they were."""
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
