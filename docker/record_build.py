#!/usr/bin/env python3
"""Write down what an image was built with, for its entrypoint: build.json. Used by Dockerfile.

Importing torch takes seconds, so what it says of itself is asked once, when the image is built:
which GPUs it has kernels for, and which CUDA release it needs a driver for.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Return versions by package, and torch's CUDA release and architectures. None: not there."""
    import torch

    flags = ""
    if torch.version.cuda is not None:
        # torch.cuda.get_arch_list() answers only where a GPU is present.
        flags = torch._C._cuda_getArchFlags() or ""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "arch_list": flags.split(),
        "torchvision": of_package("torchvision"),
        "dali": of_package("nvidia-dali-cuda120") or of_package("nvidia-dali-cuda130"),
        "apex": of_package("apex"),
    }


def of_package(name: str) -> str | None:
    """Return an installed package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(facts(), indent=1) + "\n", encoding="utf-8")
