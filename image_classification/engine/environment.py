"""What a run ran on: versions and devices, for the report."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from image_classification.core.apex import find_apex
from image_classification.hardware.accelerator import Accelerator


def torch_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return torch, torchvision, dali, apex, cuda, cudnn, driver, devices; None where absent."""
    apex = find_apex()
    return {
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "dali": _dali_version(),
        "apex": None if apex is None else apex.describe(),
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
