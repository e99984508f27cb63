#!/usr/bin/env python3
"""Write build.json: the versions an image was built with. Used by Dockerfile.

The entrypoint reads it instead of importing torch, which takes seconds: the GPU architectures torch
has kernels for, and its CUDA release, which determines the driver it needs.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Return package versions (None: not installed), torch's CUDA release and architectures."""
    import torch

    flags = ""
    if torch.version.cuda is not None:
        # torch.cuda.get_arch_list() returns nothing without a GPU.
        flags = torch._C._cuda_getArchFlags() or ""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "arch_list": flags.split(),
        "torchvision": installed_version("torchvision"),
        "dali": installed_version("nvidia-dali-cuda120")
        or installed_version("nvidia-dali-cuda130"),
        "apex": installed_version("apex"),
    }


def installed_version(name: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(facts(), indent=1) + "\n", encoding="utf-8")
