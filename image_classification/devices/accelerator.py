"""The accelerator protocol: one kind of device per implementation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler

from image_classification.core.registry import Registry
from image_classification.core.types import DevicesFound
from image_classification.devices.precision import make_grad_scaler, torch_dtype


class Accelerator(Protocol):
    """One kind of device. No method falls back to another kind or precision."""

    kind: str
    process_group_backend: str

    def found(self) -> DevicesFound:
        """Return this node's devices, which may be none."""
        ...

    def device(self, local_rank: int) -> torch.device:
        """Make the device of ``local_rank`` current and return it."""
        ...

    def check_precision(self, name: str, dtype: str) -> None:
        """Raise DeviceError if the device lacks ``dtype`` (or TF32) in hardware."""
        ...

    def set_matmul_precision(self, name: str) -> None:
        """Set float32 arithmetic explicitly: 'tf32' for TF32, 'ieee' otherwise."""
        ...

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """Return autocast to ``dtype``; a null context for float32."""
        if dtype == "float32":
            return nullcontext()
        return torch.autocast(self.kind, dtype=torch_dtype(dtype))

    def grad_scaler(self, loss_scale: float | str | None) -> GradScaler:
        """Return static or dynamic loss scaling; disabled for None."""
        return make_grad_scaler(self.kind, loss_scale)

    def synchronize(self) -> None:
        """Wait for all queued work; for timing and shutdown only."""
        ...

    def mark(self) -> Any:
        """Mark this point of the device's work, for timing, without waiting for it."""
        ...

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks; waits for the later one."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of this process's device; None if unknown."""
        ...

    def environment(self) -> dict[str, Any]:
        """Return cuda, cudnn, driver, devices, cpu for the report; None if not applicable."""
        ...


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that a device or the host is out of memory."""
    # The CPU allocator raises a plain RuntimeError, recognizable only by its text.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


ACCELERATORS: Registry[type[Accelerator]] = Registry("device kind")
ACCELERATORS.add("cuda", "image_classification.devices.cuda:CudaAccelerator")
ACCELERATORS.add("cpu", "image_classification.devices.cpu:CpuAccelerator")


def get_accelerator(kind: str) -> Accelerator:
    """Return the accelerator of ``kind``.

    Raises:
        ConfigError: this release does not support that kind.
    """
    return ACCELERATORS.get(kind)()
