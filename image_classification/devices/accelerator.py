"""The accelerator protocol, one implementation per kind of device, and the CPU's.

``cuda.py`` has the implementation for NVIDIA GPUs.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.registry import Registry
from image_classification.core.types import DevicesFound


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
        return torch.autocast(self.kind, dtype=getattr(torch, dtype))

    def grad_scaler(self, loss_scale: float | str | None) -> GradScaler:
        """Return torch's loss scaling: disabled for None, ``'dynamic'``, or a fixed scale.

        A fixed scale never grows, as in the predecessor, since its growth interval is never
        reached. It still halves when gradients overflow, and that step is skipped.

        Raises:
            ConfigError: another string, or a scale that is not positive.
        """
        if loss_scale is None:
            return GradScaler(self.kind, enabled=False)
        if loss_scale == "dynamic":
            return GradScaler(self.kind)
        if isinstance(loss_scale, str) or loss_scale <= 0:
            raise ConfigError(
                f"precision.loss_scale {loss_scale!r} is not a positive number; give a number such "
                "as 128, or 'dynamic', or null for none"
            )
        return GradScaler(self.kind, init_scale=float(loss_scale), growth_interval=2**31 - 1)

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

    def free_memory_bytes(self) -> int | None:
        """Return the free memory of the current device; None if it has none of its own."""
        return None

    def memory_limit(self, num_bytes: int) -> AbstractContextManager[None]:
        """Limit this process's tensors; beyond it `torch.OutOfMemoryError` is raised.

        Within the context, `peak_memory_bytes` counts from its start.
        """
        return nullcontext()

    def environment(self) -> dict[str, Any]:
        """Return cuda, cudnn, driver, devices for the report; None if not applicable."""
        ...


ACCELERATORS: Registry[type[Accelerator]] = Registry("device kind")
ACCELERATORS.add("cuda", "image_classification.devices.cuda:CudaAccelerator")


def get_accelerator(kind: str) -> Accelerator:
    """Return the accelerator of ``kind``.

    Raises:
        ConfigError: this release does not support that kind.
    """
    return ACCELERATORS.get(kind)()


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that a device or the host is out of memory."""
    # The CPU allocator raises a plain RuntimeError, recognizable only by its text.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model name, or its architecture if the system does not give one."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


@ACCELERATORS.register("cpu")
class CpuAccelerator(Accelerator):
    """The CPU; bfloat16 is fast only with AVX512-BF16 or AMX.

    A "device" is a process, so any number of them may share a machine: the count of `found` is not
    a limit.
    """

    kind = "cpu"
    process_group_backend = "gloo"

    def found(self) -> DevicesFound:
        """Return the processor model as one device."""
        return DevicesFound("cpu", (cpu_model(),), ("",))

    def device(self, local_rank: int) -> torch.device:
        """Return the CPU, for every rank."""
        return torch.device("cpu")

    def check_precision(self, name: str, dtype: str) -> None:
        """Raise DeviceError for TF32 and float16; bfloat16 runs on every CPU."""
        if name == "TF32":
            raise DeviceError(
                "precision TF32 needs an NVIDIA Ampere or newer GPU and this is a CPU; use "
                "--precision FP32"
            )
        if dtype == "float16":
            raise DeviceError(
                f"precision {name} in float16 needs a GPU and this is a CPU; use "
                "--set precision.dtype=bfloat16, or --precision BF16 or FP32"
            )

    def set_matmul_precision(self, name: str) -> None:
        """Set IEEE float32 arithmetic in oneDNN, without rounding to bfloat16 or TF32."""
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        """Do nothing: a CPU has no queue."""

    def mark(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.perf_counter()

    def elapsed_s(self, start: float, end: float) -> float:
        """Return the seconds between two marks."""
        return end - start

    def peak_memory_bytes(self) -> int | None:
        """Return the peak resident set of this process, without loader processes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # getrusage(2): kibibytes on Linux, bytes on macOS.
        return peak if sys.platform == "darwin" else peak * 1024

    def environment(self) -> dict[str, Any]:
        """Return the processor's name as the device; the CUDA versions are None."""
        return {"cuda": None, "cudnn": None, "driver": None, "devices": [cpu_model()]}
