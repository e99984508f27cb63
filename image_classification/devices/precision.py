"""Which precisions a device supports; dtypes and loss scaling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.amp.grad_scaler import GradScaler

from image_classification.core.errors import ConfigError
from image_classification.devices.architectures import Capability

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

# NVIDIA CUDA C++ Programming Guide, "Tensor Core input data types by compute capability".
# Below 7.0, float16 runs without tensor cores; the published AMP runs use tensor cores, and torch
# wheels from 2.10 on have no kernels for such devices.
_MIN_CAPABILITY: dict[str, tuple[Capability, str]] = {
    "float16": ((7, 0), "Volta"),
    "bfloat16": ((8, 0), "Ampere"),
    "TF32": ((8, 0), "Ampere"),
}


def torch_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype named ``dtype``.

    Raises:
        ValueError: the configuration has no such dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def cuda_lacks(name: str, dtype: str, capability: Capability, device_name: str) -> str | None:
    """Return why a CUDA device lacks precision ``name`` in ``dtype``; None if it supports it."""
    arithmetic = "TF32" if name == "TF32" else dtype
    if arithmetic not in _MIN_CAPABILITY:
        return None
    minimum, generation = _MIN_CAPABILITY[arithmetic]
    if capability >= minimum:
        return None
    instead = "AMP or FP32" if capability >= (7, 0) else "FP32"
    return (
        f"precision {name} needs {arithmetic} in hardware, compute capability "
        f"{minimum[0]}.{minimum[1]} ({generation}) or newer, but {device_name} has "
        f"{capability[0]}.{capability[1]}; use --precision {instead}"
    )


def tf32_conflict(name: str, environ: Mapping[str, str]) -> str | None:
    """Return which environment variable overrides the float32 arithmetic of ``name``, or None.

    ``NVIDIA_TF32_OVERRIDE`` acts inside cuBLAS and cuDNN and overrides torch's settings.
    ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`` (1 in NGC images) only changes torch's default, which is
    always set explicitly.
    """
    override = environ.get("NVIDIA_TF32_OVERRIDE")
    if override == "0" and name == "TF32":
        return "NVIDIA_TF32_OVERRIDE=0 turns TF32 off in the CUDA libraries; unset it for TF32"
    if override == "1" and name != "TF32":
        return (
            "NVIDIA_TF32_OVERRIDE=1 forces TF32 in the CUDA libraries, so float32 would not be "
            f"float32 in precision {name}; unset it, or use --precision TF32"
        )
    return None


def make_grad_scaler(device_type: str, loss_scale: float | str | None) -> GradScaler:
    """Return loss scaling for ``torch.amp``: disabled for None, ``'dynamic'``, or a fixed scale.

    A fixed scale never grows, as in the predecessor, since its growth interval is never reached.
    It still halves when gradients overflow, and that step is skipped.

    Raises:
        ConfigError: another string, or a scale that is not positive.
    """
    if loss_scale is None:
        return GradScaler(device_type, enabled=False)
    if loss_scale == "dynamic":
        return GradScaler(device_type)
    if isinstance(loss_scale, str) or loss_scale <= 0:
        raise ConfigError(
            f"precision.loss_scale {loss_scale!r} is not a positive number; give a number such as "
            "128, or 'dynamic', or null for none"
        )
    return GradScaler(device_type, init_scale=float(loss_scale), growth_interval=2**31 - 1)
