"""Which GPUs a build of torch has kernels for. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

Capability = tuple[int, int]
"""CUDA compute capability, (major, minor)."""

_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def arch_covers(capability: Capability, arch_list: Iterable[str]) -> bool:
    """Return whether a build with ``torch.cuda.get_arch_list()`` runs on ``capability``.

    ``sm_XY`` is machine code for devices of major X and minor Y or higher. ``compute_XY`` is PTX,
    which the driver compiles for any later device. With suffix ``a``, either is for that device
    only; with ``f``, for later minors of the same major (CUDA Programming Guide, "Compute
    capabilities").
    """
    for entry in arch_list:
        match = _ARCH.fullmatch(entry)
        if match is None:
            continue
        kind, major, minor, suffix = match[1], int(match[2]), int(match[3]), match[4]
        if suffix == "a":
            covered = capability == (major, minor)
        elif kind == "compute" and suffix == "":
            covered = capability >= (major, minor)
        else:
            covered = capability[0] == major and capability[1] >= minor
        if covered:
            return True
    return False


def build_lacks(
    capability: Capability, arch_list: Iterable[str], device_name: str, torch_version: str
) -> str | None:
    """Return why this torch has no kernels for the device, and the remedy; None if it has.

    Without this check, such a run fails at its first kernel with "no kernel image".
    """
    archs = list(arch_list)
    if arch_covers(capability, archs):
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
