"""Imported once in the server that the doctor's processes are forked from.

What cannot be imported is noted, since an exception here would end the server for every check.
"""

from __future__ import annotations

import importlib

MODULES = ("torch", "torch.distributed", "torchvision.io", "torchvision.transforms.v2")


def _why_not(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return f"{type(error).__name__}: {error}"
    return ""


FAILURES = {module: why for module in MODULES if (why := _why_not(module))}
"""Module -> why it cannot be imported; only the first attempt tells the true reason."""
