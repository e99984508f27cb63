"""The CPU as an accelerator: every process is a device."""

from __future__ import annotations

import platform
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from image_classification.core.errors import DeviceError
from image_classification.core.types import DevicesFound
from image_classification.devices.precision import make_grad_scaler, torch_dtype


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's marketing name, or the architecture where the system hides it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


class CpuAccelerator:
    """Runs anywhere; bfloat16 is exact to its definition everywhere, fast with AVX512-bf16 or AMX.

    A "device" is a process here, so any number of them may run on one machine: `found` answers
    with one name and its count is no limit.
    """

    kind = "cpu"
    process_group_backend = "gloo"

    def found(self) -> DevicesFound:
        """Return the one processor model; how many processes share it is the caller's choice."""
        return DevicesFound("cpu", (cpu_model(),), ("",))

    def device(self, local_rank: int) -> torch.device:
        """Return the CPU, whatever the rank."""
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
        """Keep oneDNN's float32 in IEEE arithmetic, never rounded to bfloat16 or TF32 inside."""
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """Autocast to ``dtype``; a null context for float32."""
        if dtype == "float32":
            return nullcontext()
        return torch.autocast("cpu", dtype=torch_dtype(dtype))

    def grad_scaler(self, loss_scale: float | str | None) -> GradScaler:
        """Static or dynamic loss scaling; disabled for None."""
        return make_grad_scaler("cpu", loss_scale)

    def synchronize(self) -> None:
        """Nothing is queued on a CPU."""

    def mark(self) -> float:
        """Return the monotonic clock: on a CPU nothing is queued."""
        return time.perf_counter()

    def elapsed_s(self, start: float, end: float) -> float:
        """Return seconds between two marks."""
        return end - start

    def peak_memory_bytes(self) -> int | None:
        """Peak resident set of this process, loaders' processes apart."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # getrusage(2): kibibytes on Linux, bytes on macOS.
        return peak if sys.platform == "darwin" else peak * 1024

    def environment(self) -> dict[str, Any]:
        """Return cuda, cudnn and driver as None, devices and cpu as the processor's name."""
        model = cpu_model()
        return {"cuda": None, "cudnn": None, "driver": None, "devices": [model], "cpu": model}
