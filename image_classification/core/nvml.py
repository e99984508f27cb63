"""NVIDIA's management library, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def nvml() -> Iterator[ModuleType | None]:
    """Yield ``pynvml``, initialised; None where the package or the driver's library is absent."""
    lib, _ = open_nvml()
    try:
        yield lib
    finally:
        if lib is not None:
            lib.nvmlShutdown()


def open_nvml() -> tuple[ModuleType | None, str]:
    """Return ``pynvml``, initialised, and ``""``; or None and why there is none.

    Who gets the library calls its ``nvmlShutdown``.
    """
    try:
        import pynvml
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    return pynvml, ""


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, None without a driver."""
    with nvml() as lib:
        return None if lib is None else str(lib.nvmlSystemGetDriverVersion())
