"""The CPU as an accelerator: every process is a device."""

from __future__ import annotations

import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from image_classification.core.errors import DeviceError
from image_classification.core.types import DevicesFound
from image_classification.devices.accelerator import Accelerator
from image_classification.devices.precision import torch_dtype


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model name, or its architecture if the system does not give one."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


class CpuAccelerator(Accelerator):
    """Runs on every CPU; bfloat16 is fast only with AVX512-BF16 or AMX.

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
        torch_dtype(dtype)
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
        """Return devices and cpu as the processor's name; the CUDA versions are None."""
        model = cpu_model()
        return {"cuda": None, "cudnn": None, "driver": None, "devices": [model], "cpu": model}
