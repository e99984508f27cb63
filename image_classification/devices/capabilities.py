"""What an NVIDIA GPU and a build of torch support, by compute capability; does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Capability = tuple[int, int]
"""CUDA compute capability, (major, minor)."""

_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")

# NVIDIA CUDA C++ Programming Guide, "Tensor Core input data types by compute capability".
# Below 7.0, float16 runs without tensor cores; the published AMP runs use tensor cores, and torch
# wheels from 2.10 on have no kernels for such devices.
_MIN_CAPABILITY: dict[str, tuple[Capability, str]] = {
    "float16": ((7, 0), "Volta"),
    "bfloat16": ((8, 0), "Ampere"),
    "TF32": ((8, 0), "Ampere"),
}


def build_lacks(
    capability: Capability, arch_list: Iterable[str], device_name: str, torch_version: str
) -> str | None:
    """Return why this torch has no kernels for the device, and the remedy; None if it has.

    arch_list: of ``torch.cuda.get_arch_list()``. Without this check, such a run fails at its first
    kernel with "no kernel image".
    """
    archs = list(arch_list)
    if any(_arch_covers(capability, arch) for arch in archs):
        return None
    sm = f"sm_{capability[0]}{capability[1]}"
    if capability < (7, 5):
        remedy = (
            "use an image or environment whose base is CUDA 12 with torch 2.10 (cu128), the last "
            "wheels for Volta"
        )
    else:
        remedy = f"use the image built for this platform, or a torch whose wheels list {sm}"
    return (
        f"torch {torch_version} has no kernels for {device_name} ({sm}), only for "
        f"{' '.join(archs) or 'no device'}; {remedy}"
    )


def _arch_covers(capability: Capability, arch: str) -> bool:
    """Return whether kernels built for ``arch`` run on ``capability``.

    ``sm_XY`` is machine code for devices of major X and minor Y or higher. ``compute_XY`` is PTX,
    which the driver compiles for any later device. With suffix ``a``, either is for that device
    only; with ``f``, for later minors of the same major (CUDA Programming Guide, "Compute
    capabilities").
    """
    match = _ARCH.fullmatch(arch)
    if match is None:
        return False
    kind, major, minor, suffix = match[1], int(match[2]), int(match[3]), match[4]
    if suffix == "a":
        return capability == (major, minor)
    if kind == "compute" and suffix == "":
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor


def cuda_lacks(name: str, dtype: str, capability: Capability, device_name: str) -> str | None:
    """Return why a CUDA device lacks precision ``name`` in ``dtype``; None if it supports it."""
    arithmetic = "TF32" if name == "TF32" else dtype
    minimum, generation = _MIN_CAPABILITY.get(arithmetic, ((0, 0), ""))
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
