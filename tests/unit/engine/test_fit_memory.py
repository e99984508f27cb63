"""The per-device batch that fits, with an accelerator whose memory is set by the test."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import CpuAccelerator, get_accelerator
from image_classification.engine.build import build_parts
from image_classification.engine.fit_memory import _try_steps, fit_memory
from image_classification.engine.runs import Run

MIB = 2**20


class LimitedAccelerator(CpuAccelerator):
    """A CPU whose tensors fit in ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0

    def free_memory_bytes(self) -> int:
        return int(self.limit_bytes / 0.9) + 1

    def peak_memory_bytes(self) -> int:
        return self.peak_bytes


@pytest.fixture
def fitted(small_config, tmp_path: Path):
    """Return the configuration fitted to a memory in MiB, at 1 MiB per image, and the batches."""

    def fit(limit_mib: int, world_size: int = 1, **settings):
        config = small_config(batch__global=96, batch__per_device=48, **settings)
        accelerator = LimitedAccelerator(limit_mib * MIB)
        tried = []

        def trial(run: Run) -> None:
            tried.append(run.config.batch.per_device_batch)
            accelerator.peak_bytes = tried[-1] * MIB
            if accelerator.peak_bytes > accelerator.limit_bytes:
                raise torch.OutOfMemoryError("no memory")

        world = WorldInfo(world_size=world_size)
        run = Run(config, world, accelerator, torch.device("cpu"), tmp_path)
        return fit_memory(run, trial), tried

    return fit


def test_the_published_batch_is_kept_where_it_fits(fitted):
    config, tried = fitted(64)
    assert tried == [48] and config.batch.per_device_batch == 48
    assert config.batch.accumulation == 2
    assert config.warnings[-1] == (
        "per-device batch by memory: 48 per device x 1 device x accumulation 2 = global 96; "
        "a step needs 0.0 of 0.1 GiB"
    )


def test_the_largest_divisor_of_the_global_batch_that_fits(fitted):
    config, tried = fitted(25)
    assert tried == [48, 32, 24]
    assert (config.batch.per_device_batch, config.batch.accumulation) == (24, 4)
    assert config.batch.global_batch == 96
    assert config.warnings[-1].endswith("; 32 images do not fit")
    assert config.provenance["batch.accumulation"] == "formula: 96 / (24 x 1)"
    assert fitted(25)[0] == config
    # Three processes: 32 images of each step on each device.
    config, tried = fitted(25, world_size=3)
    assert tried == [32, 16] and config.batch.accumulation == 2


def test_not_even_one_image(fitted):
    with pytest.raises(DeviceError, match=r"one image of .* px does not fit in 0.0 GiB"):
        fitted(0)


def test_another_error_of_a_trial_is_not_taken_for_a_lack_of_memory(small_config, tmp_path):
    def broken(run: Run) -> None:
        raise RuntimeError("a bug")

    accelerator = LimitedAccelerator(MIB)
    run = Run(small_config(), WorldInfo(), accelerator, torch.device("cpu"), tmp_path)
    with pytest.raises(RuntimeError, match="a bug"):
        fit_memory(run, broken)


@pytest.mark.parametrize("mode", ["convergence", "evaluate"])
def test_real_trials_leave_the_run_as_it_was(mode, small_config, tmp_path):
    config = small_config(
        mode, ema__decay=0.9, mixing__mixup=0.2, batch__per_device=4, data__image_size=32
    )
    # A trial does not read the checkpoint.
    config = replace(config, run=replace(config.run, resume=str(tmp_path / "missing")))
    accelerator = LimitedAccelerator(MIB)

    def weights() -> dict[str, torch.Tensor]:
        run = Run(config, WorldInfo(), get_accelerator("cpu"), torch.device("cpu"), tmp_path)
        return build_parts(run).model.state_dict()

    before = weights()
    run = Run(config, WorldInfo(), accelerator, torch.device("cpu"), tmp_path)
    chosen = fit_memory(run, _try_steps)
    assert chosen.batch == config.batch and replace(chosen, warnings=()) != config
    assert run.config == config
    for name, tensor in weights().items():
        assert torch.equal(tensor, before[name]), name


def test_without_memory_of_its_own_a_device_keeps_the_batch(small_config, tmp_path):
    config = small_config()
    run = Run(config, WorldInfo(), get_accelerator("cpu"), torch.device("cpu"), tmp_path)
    assert fit_memory(run) is config
