"""Checks of what torch makes of the GPUs: architectures, kernels, the platform's own devices.

`look` and `affinity_modes` run in a process of their own; the rest is pure and needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from image_classification.config.placement import device_matches
from image_classification.core.checkup import Check, fail, ok, skipped, warn
from image_classification.core.errors import DeviceError

_SIDE = 512
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Gpu:
    """One GPU torch sees. lacks: why this build has no kernels for it. error: of a kernel."""

    name: str
    capability: tuple[int, int]
    lacks: str = ""
    error: str = ""


@dataclass(frozen=True)
class TorchGpus:
    """What torch sees. cuda: the release it is built with; None for a build without CUDA."""

    torch: str
    cuda: str | None
    arch_list: tuple[str, ...]
    gpus: tuple[Gpu, ...]


def look() -> TorchGpus:
    """Multiply two matrices on every GPU torch sees, and compare with the CPU's result."""
    import torch

    from image_classification.hardware.architectures import build_lacks

    cuda = torch.version.cuda
    if cuda is None:
        return TorchGpus(torch.__version__, None, (), ())
    archs = tuple(torch.cuda.get_arch_list())
    gpus = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        capability = torch.cuda.get_device_capability(index)
        lacks = build_lacks(capability, archs, name, torch.__version__) or ""
        error = "" if lacks else _multiply(index)
        gpus.append(Gpu(name, capability, lacks, error))
    return TorchGpus(torch.__version__, cuda, archs, tuple(gpus))


def _multiply(index: int) -> str:
    import torch

    torch.backends.cuda.matmul.fp32_precision = "ieee"
    left = torch.randn(_SIDE, _SIDE, generator=torch.Generator().manual_seed(index))
    try:
        device = torch.device("cuda", index)
        result = (left.to(device) @ left.to(device)).cpu()
    except RuntimeError as error:  # torch.cuda's errors are of this kind
        return str(error).strip().splitlines()[0]
    worst = float((result - left @ left).abs().max())
    return "" if worst < _TOLERANCE else f"a matrix product is wrong by {worst:.3g}"


def affinity_modes(num_devices: int) -> dict[str, str]:
    """Try each mode of ``--gpu-affinity`` on this process; return mode -> why not, "" where so.

    Leaves the process bound as it was.
    """
    from image_classification.hardware.affinity import MODES, set_affinity

    before = os.sched_getaffinity(0)

    def why_not(mode: str) -> str:
        try:
            set_affinity(mode, 0, num_devices)
        except DeviceError as error:
            return error.message
        finally:
            os.sched_setaffinity(0, before)
        return ""

    return {mode: why_not(mode) for mode in MODES if mode != "none"}


def check_devices(
    seen: TorchGpus, wanted_name: str | None, wanted_count: int | None, hint: str = ""
) -> Check:
    """Compare the GPUs with a platform's; None: no GPU platform is asked about.

    hint: a likelier reason for there being none than the usual ones.
    """
    name = "gpus"
    if not seen.gpus:
        if wanted_count is None:
            return skipped(name, "torch sees no GPU")
        why = "torch is built without CUDA" if seen.cuda is None else "torch sees no GPU"
        remedy = hint or (
            "install torch with CUDA"
            if seen.cuda is None
            else "give the container the GPUs "
            "(docker run --gpus all), see CUDA_VISIBLE_DEVICES and nvidia-smi"
        )
        found = f"{why}; the platform has {wanted_count} x {wanted_name or 'GPU'}"
        return fail(name, found, f"{remedy}; or use --platform CPU")
    names = [gpu.name for gpu in seen.gpus]
    found = ", ".join(f"{names.count(n)} x {n}" for n in dict.fromkeys(names))
    if wanted_count is None:
        return ok(name, found)
    problems = []
    others = [n for n in dict.fromkeys(names) if wanted_name and not device_matches(wanted_name, n)]
    if others:
        problems.append(f"the platform's are {wanted_name}")
    if len(names) < wanted_count:
        problems.append(f"the platform has {wanted_count}")
    if problems:
        return warn(
            name,
            f"{found}; {', '.join(problems)}",
            "a run uses what is there at the same global batch, and its speed is not compared; "
            "launch.py --list platforms has others",
        )
    return ok(name, found if len(names) == wanted_count else f"{found}; {wanted_count} are used")


def check_kernels(seen: TorchGpus) -> Check:
    """Judge whether torch's kernels run on every GPU."""
    name = "gpu-kernels"
    if not seen.gpus:
        return skipped(name, f"no GPU to try them on (torch {seen.torch}, CUDA {seen.cuda})")
    lacking = next((gpu.lacks for gpu in seen.gpus if gpu.lacks), "")
    if lacking:
        found, _, remedy = lacking.rpartition("; ")
        return fail(name, found, remedy)
    broken = [f"GPU {i} {g.name}: {g.error}" for i, g in enumerate(seen.gpus) if g.error]
    if broken:
        return fail(
            name, broken[0], "nvidia-smi shows what else runs there; dmesg (Xid) broken hardware"
        )
    kinds = sorted({"sm_{}{}".format(*gpu.capability) for gpu in seen.gpus})
    return ok(name, f"a matrix product is right on all {len(seen.gpus)} ({' '.join(kinds)})")


def check_affinity(answers: dict[str, str], wanted: str) -> Check:
    """Judge ``--gpu-affinity``: the platform's mode must be usable. answers: `affinity_modes`."""
    name = "gpu-affinity"
    if answers.get(wanted):
        found, _, remedy = answers[wanted].rpartition("; ")
        return fail(name, f"{wanted}: {found}", remedy)
    usable: Sequence[str] = [mode for mode, why in answers.items() if not why]
    if not usable:
        found, _, remedy = next(iter(answers.values())).rpartition("; ")
        return warn(name, f"no mode is usable: {found}", remedy)
    return ok(name, f"{wanted} is the platform's; usable: {', '.join(usable)}")
