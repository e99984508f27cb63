from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from image_classification.config.schema import (
    BatchConfig,
    DataConfig,
    EmaConfig,
    LossConfig,
    MixingConfig,
    ModelConfig,
    OptimConfig,
    PlatformConfig,
    PrecisionConfig,
    RunConfig,
    RunControl,
    RunNames,
    ScheduleConfig,
)
from image_classification.core.types import DevicesFound, Record
from tests.support.runs import write_training

DGX1 = DevicesFound("cuda", ("Tesla V100-SXM2-16GB",) * 8, ("7.0",) * 8)


def dgx1_config(**sections: dict[str, Any]) -> RunConfig:
    """The published ResNet-50 AMP run of 90 epochs; ``section={key: value}`` changes it."""
    config = RunConfig(
        names=RunNames(
            model="resnet50",
            precision="AMP",
            mode="convergence",
            platform="DGX1V",
            recipe="90e",
        ),
        model=ModelConfig(name="resnet50", memory_format="nhwc"),
        data=DataConfig(),
        batch=BatchConfig(per_device_batch=256, global_batch=2048, accumulation=1),
        optim=OptimConfig(lr=2.048, weight_decay=2**-15),
        schedule=ScheduleConfig(epochs=90, warmup_epochs=8),
        loss=LossConfig(label_smoothing=0.1),
        mixing=MixingConfig(),
        ema=EmaConfig(),
        precision=PrecisionConfig(name="AMP", dtype="float16", loss_scale=128.0),
        platform=PlatformConfig(name="DGX1V", num_devices=8),
        run=RunControl(mode="convergence"),
        provenance={"optim.lr": "configs.yml:123, recipe 90e"},
        sources=("nvidia-resnet50-dgx1v-amp-90e",),
    )
    for section, changes in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **changes)})
    return config


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    return dgx1_config


@pytest.fixture
def dgx1() -> DevicesFound:
    return DGX1


@pytest.fixture
def results() -> dict[str, Any]:
    """A finished 90-epoch run whose figures are within the published ones."""
    return {
        "train": {
            "images_per_s": 8300.0,
            "images_per_s_per_device": 1037.5,
            "step_time_s": {
                "p50": 0.24,
                "p95": 0.26,
                "p99": 0.3,
                "histogram": {"low_s": 0.2, "high_s": 0.3, "counts": [8, 2], "longest_s": 0.4},
            },
            "data_wait_fraction": 0.02,
            "epochs": 90,
            "steps": 56250,
            "images": 115_200_000,
        },
        "validation": {"top1": 76.8, "top5": 93.2, "loss": 0.98, "images": 50_000},
        "time_s": {"total": 14500.0, "train": 13800.0, "validation": 560.0, "first_step": 3.2},
    }


def two_epochs() -> list[Record]:
    """Two epochs of four steps each, with every kind of record that training yields."""
    start = {
        "num_parameters": 25_557_032,
        "steps_per_epoch": 4,
        "total_steps": 8,
        "epochs": 2,
        "start_step": 0,
        "num_train_images": 8192,
        "num_val_images": 50_000,
        "world_size": 8,
        "global_batch": 2048,
        "device": "Tesla V100-SXM2-16GB",
        "data": "/imagenet",
    }
    records = [Record("start", 0, 0, start)]
    for step in range(1, 9):
        epoch = (step - 1) // 4
        values = {
            "loss": 7.0 - 0.5 * step,
            "lr": 0.25 * step,
            "images_per_s": 8000.0,
            "data_wait_s": 0.064,
            "step_time_s": 0.256,
            "epoch_step": step - 4 * epoch,
            "steps_per_epoch": 4,
            "total_steps": 8,
            "memory_bytes": 3 * 2**30,
            "loss_scale": 128.0,
            "skipped_steps": 0,
        }
        records.append(Record("step", step, epoch, values))
        if step % 4 == 0:
            records += _end_of_epoch(step, epoch)
    return records


def _end_of_epoch(step: int, epoch: int) -> list[Record]:
    trained = {
        "images": 8192,
        "time_s": 1.024,
        "images_per_s": 8000.0,
        "compute_images_per_s": 10666.7,
        "loss": 7.0 - 0.5 * step,
        "lr": 0.25 * step,
        "steps": 4,
        "data_wait_s": 0.256,
    }
    validated = {
        "top1": 30.0 + 20.0 * epoch,
        "top5": 60.0 + 20.0 * epoch,
        "loss": 3.0 - epoch,
        "images": 50_000,
        "time_s": 6.0,
        "images_per_s": 8333.3,
        "compute_images_per_s": 9000.0,
        "is_best": True,
    }
    saved = {"path": f"checkpoints/step-{step}", "time_s": 0.5, "bytes": 2**28, "is_best": True}
    return [
        Record("epoch", step, epoch, trained),
        Record("validation", step, epoch, validated),
        Record("checkpoint", step, epoch, saved),
    ]


@pytest.fixture
def records() -> list[Record]:
    return two_epochs()


@pytest.fixture
def trained(tmp_path, make_config):
    def train(name="run", changes=None, **options):
        config = make_config(**(changes or {}))
        options = {"epochs": 4, "steps_per_epoch": 20, "print_every": 5} | options
        return write_training(tmp_path / name, config, **options)

    return train
