"""What a run ran on: versions and devices, for the report."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from image_classification.engine.build import Run
from image_classification.hardware.accelerator import Accelerator


def torch_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return torch, torchvision, dali, cuda, cudnn, driver and devices; None where absent."""
    return {
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "dali": _dali_version(),
        **accelerator.environment(),
    }


def _dali_version() -> str | None:
    # Two wheels provide the one module, by CUDA version.
    return _version("nvidia-dali-cuda120") or _version("nvidia-dali-cuda130")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_telemetry(run: Run) -> dict[str, Any]:
    """Return ``telemetry`` of the report with what this release measures: this rank's memory.

    Power, energy, temperature and utilisation are not sampled: null, never 0.
    """
    peak = run.accelerator.peak_memory_bytes()
    names = run.accelerator.found().names
    unmeasured = {
        "power_w_mean": None,
        "power_w_max": None,
        "energy_j": None,
        "utilization_mean": None,
        "temperature_c_max": None,
        "throttled": None,
    }
    name = names[run.world.local_rank % len(names)] if names else run.accelerator.kind
    return {
        "devices": [{"name": name, "memory_peak_bytes": peak, **unmeasured}],
        "energy_j": None,
        "images_per_joule": None,
        "source": None,
    }
