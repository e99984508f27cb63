"""NVIDIA's management library, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def nvml() -> Iterator[ModuleType | None]:
    """Yield ``pynvml``, initialised; None where the package or the driver's library is absent."""
    lib = _initialised()
    try:
        yield lib
    finally:
        if lib is not None:
            lib.nvmlShutdown()


def _initialised() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return cast(ModuleType, pynvml)


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, None without a driver."""
    with nvml() as lib:
        return None if lib is None else str(lib.nvmlSystemGetDriverVersion())
