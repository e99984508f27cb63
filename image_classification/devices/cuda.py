"""NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

import os
from typing import Any

import torch

from image_classification.core.errors import DeviceError
from image_classification.core.nvml import driver_version
from image_classification.core.types import DevicesFound
from image_classification.devices.accelerator import Accelerator
from image_classification.devices.architectures import build_lacks
from image_classification.devices.cpu import cpu_model
from image_classification.devices.precision import cuda_lacks, tf32_conflict, torch_dtype


def cudnn_name(version: int | None) -> str | None:
    """Format cuDNN's version number: 91002 is 9.10.2, 8902 is 8.9.2; None stays None."""
    if version is None:
        return None
    base = 10_000 if version >= 90_000 else 1_000
    return f"{version // base}.{version % base // 100}.{version % 100}"


class CudaAccelerator(Accelerator):
    """One process per GPU; ``cuda:N`` counts the visible devices (``CUDA_VISIBLE_DEVICES``)."""

    kind = "cuda"
    process_group_backend = "nccl"

    def found(self) -> DevicesFound:
        """Return the visible GPUs; none without a GPU, a driver or a CUDA build of torch."""
        indices = range(torch.cuda.device_count())
        return DevicesFound(
            "cuda",
            tuple(torch.cuda.get_device_name(i) for i in indices),
            tuple("{}.{}".format(*torch.cuda.get_device_capability(i)) for i in indices),
        )

    def device(self, local_rank: int) -> torch.device:
        """Make GPU ``local_rank`` current, enable cuDNN's benchmark mode, and return the device.

        Raises:
            DeviceError: there is no such GPU, or this torch has no kernels for it.
        """
        count = torch.cuda.device_count()
        if count == 0:
            raise DeviceError(
                "no NVIDIA GPU is usable here; check nvidia-smi (in a container: --gpus all), or "
                "use --platform CPU, or --set platform.device=cpu to run this platform's "
                "configuration anyway"
            )
        if local_rank >= count:
            raise DeviceError(
                f"process {local_rank} of this node has no GPU: {count} visible; start {count} "
                "processes per node, or let each process see all GPUs (Slurm: --gpu-bind=none)"
            )
        message = build_lacks(
            torch.cuda.get_device_capability(local_rank),
            torch.cuda.get_arch_list(),
            torch.cuda.get_device_name(local_rank),
            torch.__version__,
        )
        if message is not None:
            raise DeviceError(message)
        torch.cuda.set_device(local_rank)
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda", local_rank)

    def check_precision(self, name: str, dtype: str) -> None:
        """Raise DeviceError if the current device lacks ``dtype`` (or TF32) in hardware.

        Emulation does not count. An environment variable that overrides TF32 is refused as well.
        """
        torch_dtype(dtype)
        message = cuda_lacks(
            name, dtype, torch.cuda.get_device_capability(), torch.cuda.get_device_name()
        ) or tf32_conflict(name, os.environ)
        if message is not None:
            raise DeviceError(message)

    def set_matmul_precision(self, name: str) -> None:
        """Set float32 matrix products and convolutions: 'tf32' for TF32, 'ieee' otherwise.

        Both explicitly, since cuDNN's default is TF32, in NGC images that of cuBLAS as well.
        ``set_float32_matmul_precision`` comes first: Inductor reads torch's legacy state, and
        raises if only the per-backend setting was changed.
        """
        precision = "tf32" if name == "TF32" else "ieee"
        torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
        assert torch.backends.cuda.matmul.fp32_precision == precision
        assert torch.backends.cudnn.conv.fp32_precision == precision  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        """Wait for all work queued on the current device."""
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        """Record an event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        return event

    def elapsed_s(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two marks, by the GPU's clock; waits for the later one."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000.0  # type: ignore[no-untyped-call]

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of tensors on the current device, without caches and context."""
        return torch.cuda.max_memory_allocated()

    def environment(self) -> dict[str, Any]:
        """Return versions of CUDA, cuDNN and the driver, and the names of devices and CPU."""
        version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {
            "cuda": torch.version.cuda,
            "cudnn": cudnn_name(version),
            "driver": driver_version(),
            "devices": list(self.found().names),
            "cpu": cpu_model(),
        }
