"""Tensors are copied from the GPU while it does other work."""

import threading
from pathlib import Path

import pytest
import torch

from image_classification.config.resolve import resolve
from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.devices.async_readback import HostCopy
from image_classification.engine.build import build_training
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device"),
]


def test_a_copy_is_unaffected_by_later_changes_and_pinned() -> None:
    weight = torch.randn(64, 32, 3, 3, device="cuda").to(memory_format=torch.channels_last)
    counter = torch.tensor(3.0)
    before = weight.cpu()
    copy = HostCopy({"w": weight, "step": counter})
    weight.zero_()
    taken = copy.take()
    assert copy.staged
    assert torch.equal(taken["w"], before)
    assert taken["w"].is_pinned()
    assert taken["w"].is_contiguous(memory_format=torch.channels_last)
    assert taken["step"] == 3


def test_the_copy_to_the_host_does_not_wait_for_the_training_stream() -> None:
    weight = torch.randn(1 << 22, device="cuda")
    # A first copy, because pinning memory for the first time waits for the device.
    HostCopy({"w": weight}).take()
    copy = HostCopy({"w": weight})
    torch.cuda._sleep(4_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    taken = {}
    thread = threading.Thread(target=lambda: taken.update(copy.take()))
    thread.start()
    thread.join(60)
    assert not busy.query()
    assert torch.equal(taken["w"], weight.cpu())


def test_without_device_memory_tensors_are_copied_to_the_host_at_once() -> None:
    # Large enough for a separate segment, which leaves no free memory in the cache.
    weight = torch.randn(1 << 24, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        copy = HostCopy({"w": weight})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not copy.staged
    assert torch.equal(copy.take()["w"], weight.cpu())


def test_checkpoints_of_a_run_have_the_weights_of_their_step(tmp_path: Path) -> None:
    overrides = {
        "model.num_classes": 4,
        "data.image_size": 32,
        "data.resize": 32,
        "batch.per_device": 8,
        "batch.global": 8,
        "platform.device": "cuda",
        "schedule.epochs": 1,
        "run.validate": False,
        "run.max_steps": 6,
        "run.save_every": "1 steps",
        "run.keep_checkpoints": -1,
        "run.log_every_steps": 1,
    }
    config = resolve(
        "resnet18", "FP32", "convergence", "CPU", data="synthetic", overrides=overrides
    )
    accelerator = get_accelerator("cuda")
    run = build_training(Run(config, WorldInfo(), accelerator, accelerator.device(0), tmp_path))
    trained = {}
    try:
        for record in train(run, StopRequest()):
            if record.kind == "step":
                weights = run.parts.model.state_dict()
                trained[record.step] = {k: v.cpu() for k, v in weights.items()}
    finally:
        run.close()
    saved = checkpoint.listed(run.checkpoints)
    assert [s.step for s in saved] == list(trained)
    for each in saved:
        content = checkpoint.load(each.path).model
        assert all(torch.equal(content[k], v) for k, v in trained[each.step].items())
