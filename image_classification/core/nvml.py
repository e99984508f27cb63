"""Access to NVIDIA's management library (NVML), if it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def open_nvml() -> tuple[ModuleType | None, Exception | None]:
    """Return ``pynvml``, initialized, and None; or None and why it is unavailable.

    The error is an ImportError or an ``NVMLError``. The caller must call ``nvmlShutdown``.
    """
    try:
        import pynvml
    except ImportError:
        return None, ImportError("the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, error
    return pynvml, None


@contextmanager
def nvml() -> Iterator[ModuleType | None]:
    """Yield ``pynvml``, initialized; None without the package or the driver's library."""
    lib, _ = open_nvml()
    try:
        yield lib
    finally:
        if lib is not None:
            lib.nvmlShutdown()


def driver_version() -> str | None:
    """Return the NVIDIA driver's version; None without a driver."""
    with nvml() as lib:
        return None if lib is None else str(lib.nvmlSystemGetDriverVersion())


def pci_bus_id(properties: Any) -> str:
    """Return NVML's PCI bus id from ``torch.cuda.get_device_properties``: ``00000000:3B:00.0``."""
    p = properties
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"
