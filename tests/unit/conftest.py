"""Reports of finished runs, for tests that compare or combine several."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_classification.config.resolve import resolve
from image_classification.core.types import DevicesFound
from image_classification.reporting.build_report import build_report
from image_classification.reporting.report import write_report

ENVIRONMENT: dict[str, Any] = {
    "torch": "2.10.0",
    "torchvision": "0.25.0",
    "dali": "2.4.0",
    "cuda": "12.6",
    "cudnn": 91002,
    "driver": "550.54.15",
    "cpu": "Xeon E5-2698, 80 usable cores",
    "python": "3.11.7",
    "container": "docker",
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
}


def train_results(images_per_s: float = 8300.0, top1: float = 76.8) -> dict[str, Any]:
    """The ``results`` of a finished 90-epoch run."""
    return {
        "train": {
            "images_per_s": images_per_s,
            "step_time_s": {"p50": 0.24, "p95": 0.26, "p99": 0.3},
            "data_wait_fraction": 0.02,
            "epochs": 90,
            "steps": 56_250,
        },
        "validation": {"top1": top1, "top5": 93.2, "loss": 0.98, "images": 50_000},
        "time_s": {"total": 14_500.0},
    }


@pytest.fixture
def record_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the report of a run of a published configuration; return its folder.

    ended_at: the day in January 2026. device: its name; there are as many as the platform has.
    overrides: settings as ``section__key=value``.
    """

    def record(
        name: str,
        *,
        model: str = "resnet50",
        precision: str = "AMP",
        mode: str = "convergence",
        platform: str = "DGX1V",
        recipe: str | None = "90e",
        seed: int = 0,
        ended_at: int = 5,
        results: dict[str, Any] | None = None,
        telemetry: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        device: str = "Tesla V100-SXM2-16GB",
        exit_code: int = 0,
        exit_message: str = "",
        **overrides: Any,
    ) -> Path:
        settings = {key.replace("__", "."): value for key, value in overrides.items()}
        config = resolve(
            model,
            precision,
            mode,
            platform,
            recipe=recipe,
            overrides={"run.seed": seed, **settings},
        )
        devices = DevicesFound("cuda", (device,) * config.platform.num_devices)
        report = build_report(
            config,
            devices=devices,
            environment={
                **ENVIRONMENT,
                "devices": list(devices.names),
                "ended_at": f"2026-01-{ended_at:02d}T03:00:00+00:00",
                **(environment or {}),
            },
            results=copy.deepcopy(train_results() if results is None else results),
            telemetry=telemetry,
            exit_code=exit_code,
            exit_message=exit_message,
        )
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_report(report, folder)
        return folder

    return record


@pytest.fixture
def run_results() -> Callable[..., dict[str, Any]]:
    """Return the function that makes the results of a finished run."""
    return train_results
