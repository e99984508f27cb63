"""What an accelerator is: the seam new silicon is added behind (one file each)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler

from image_classification.core.registry import Registry
from image_classification.core.types import DevicesFound


class Accelerator(Protocol):
    """One kind of device. Methods never fall back to another kind or precision."""

    kind: str
    process_group_backend: str

    def found(self) -> DevicesFound:
        """Probe this node; zero devices is an answer, not an error."""
        ...

    def device(self, local_rank: int) -> torch.device:
        """Make ``local_rank``'s device current and return it."""
        ...

    def check_precision(self, name: str, dtype: str) -> None:
        """Raise DeviceError when the device lacks ``dtype`` (or TF32) in hardware."""
        ...

    def set_matmul_precision(self, name: str) -> None:
        """Set FP32 arithmetic explicitly: 'tf32' for TF32, 'ieee' otherwise."""
        ...

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """Autocast to ``dtype``; a null context for float32."""
        ...

    def grad_scaler(self, loss_scale: float | str | None) -> GradScaler:
        """Static or dynamic loss scaling; disabled for None."""
        ...

    def synchronize(self) -> None:
        """Wait for all queued work (timing and shutdown only)."""
        ...

    def mark(self) -> Any:
        """Mark this point of the device's work without waiting for it (timing)."""
        ...

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Return seconds between two marks; waits for the later one."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Peak memory of this process's device; None where it cannot be known."""
        ...

    def environment(self) -> dict[str, Any]:
        """Keys cuda, cudnn, driver, devices for the report; None where not applicable."""
        ...


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that a device or the host has no memory left."""
    # The CPU's allocator raises a plain RuntimeError, known by its text alone.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


ACCELERATORS: Registry[type[Accelerator]] = Registry("device kind")
ACCELERATORS.add("cuda", "image_classification.devices.cuda:CudaAccelerator")
ACCELERATORS.add("cpu", "image_classification.devices.cpu:CpuAccelerator")


def get_accelerator(kind: str) -> Accelerator:
    """Return the accelerator of ``kind``.

    Raises:
        ConfigError: there is no support for that kind in this release.
    """
    return ACCELERATORS.get(kind)()
