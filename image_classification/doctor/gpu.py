"""Checks of NVIDIA's driver through its management library: no torch, no CUDA context.

Checks of what torch makes of the GPUs: architectures, kernels, the platform's own devices.

`look` and `affinity_modes` run in a process of their own; the rest is pure and needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

from image_classification.config.placement import device_matches
from image_classification.core.errors import DeviceError
from image_classification.core.units import size_text
from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    skipped,
    warn,
)

# NVIDIA CUDA Compatibility, "Minor version compatibility": the oldest driver branch that runs
# programs built with any release of a CUDA major version.
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
_NEWEST_FOR_VOLTA = 580
_BUSY_SHARE = 0.1

_GPUS_INTO_CONTAINER = (
    "give the container the GPUs (docker run --gpus all, with NVIDIA's container toolkit on the "
    "host)"
)
_INIT_REMEDIES = {
    "NVMLError_LibraryNotFound": f"install NVIDIA's driver, or {_GPUS_INTO_CONTAINER}",
    "NVMLError_DriverNotLoaded": "load the driver (sudo modprobe nvidia; nvidia-smi shows it), or "
    "reinstall it for the running kernel",
    "NVMLError_LibRmVersionMismatch": "restart the machine, or reload the driver's modules: it "
    "was updated while it was loaded; in a container, start the container anew",
    "NVMLError_NoPermission": f"let this user open /dev/nvidia*, or {_GPUS_INTO_CONTAINER}",
}
_DEVICE_REMEDY = "take the machine out of use; nvidia-smi -q and dmesg (Xid) show more"


@dataclass(frozen=True)
class GpuState:
    """One GPU as the driver sees it. error: why it does not answer; "" where it does.

    capability: CUDA compute capability, (major, minor); (0, 0) where the driver does not tell.
    """

    index: int
    name: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    error: str = ""
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Driver:
    """version: "" where there is none. cuda: (major, minor) the driver can run by itself.

    error, error_kind: text and NVML's class of what failed; "" where nothing did.
    """

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[GpuState, ...] = ()
    error: str = ""
    error_kind: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether this machine or container simply has no driver."""
        return self.error_kind == "NVMLError_LibraryNotFound"


def read_driver() -> Driver:
    """Ask the driver for itself and its GPUs; whatever fails is in the answer."""
    try:
        import pynvml
    except ImportError as error:
        return Driver(error=str(error), error_kind="ImportError")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Driver(error=str(error), error_kind=type(error).__name__)
    try:
        version = str(pynvml.nvmlSystemGetDriverVersion())
        number = int(pynvml.nvmlSystemGetCudaDriverVersion())
        count = int(pynvml.nvmlDeviceGetCount())
        return Driver(
            version,
            (number // 1000, number % 1000 // 10),
            tuple(_gpu_state(pynvml, index) for index in range(count)),
        )
    except pynvml.NVMLError as error:
        return Driver(error=str(error), error_kind=type(error).__name__)
    finally:
        pynvml.nvmlShutdown()


def _gpu_state(lib: ModuleType, index: int) -> GpuState:
    name = ""
    try:
        handle = lib.nvmlDeviceGetHandleByIndex(index)
        name = str(lib.nvmlDeviceGetName(handle))
        memory = lib.nvmlDeviceGetMemoryInfo(handle)
        return GpuState(
            index, name, int(memory.total), int(memory.free), capability=_capability(lib, handle)
        )
    except lib.NVMLError as error:
        return GpuState(index, name, error=str(error))


def _capability(lib: ModuleType, handle: object) -> tuple[int, int]:
    try:
        major, minor = lib.nvmlDeviceGetCudaComputeCapability(handle)
    except lib.NVMLError:  # some makers' libraries lack it: no reason to call a GPU lost
        return (0, 0)
    return int(major), int(minor)


def check_driver(driver: Driver, needs_gpu: bool) -> Check:
    """Say whether there is a working driver."""
    name = "driver"
    if driver.error_kind == "ImportError":
        remedy = "pip install nvidia-ml-py"
        return warn(name, f"not asked: {driver.error}", remedy)
    if driver.is_absent and not needs_gpu:
        return skipped(name, "no NVIDIA driver here")
    if driver.error:
        remedy = _INIT_REMEDIES.get(driver.error_kind, "see nvidia-smi and dmesg")
        return fail(name, f"NVIDIA's driver: {driver.error}", remedy)
    cuda = f"CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    return ok(name, f"{driver.version}, runs up to {cuda} by itself")


def check_gpus(driver: Driver) -> list[Check]:
    """Judge each GPU the driver knows: whether it answers, and what of its memory is free."""
    if not driver.version:
        return []
    lost = [gpu for gpu in driver.gpus if gpu.error]
    checks = [
        fail("gpu-health", f"GPU {g.index} {g.name or ''}: {g.error}", _DEVICE_REMEDY) for g in lost
    ]
    working = [gpu for gpu in driver.gpus if not gpu.error]
    if working and not lost:
        checks.append(ok("gpu-health", f"{len(working)} answer: {counted(working)}"))
    if working:
        checks.append(_memory(working))
    return checks


def counted(gpus: Iterable[GpuState]) -> str:
    """Return ``8 x NAME``, one for each kind."""
    names = [gpu.name for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _memory(gpus: list[GpuState]) -> Check:
    name = "gpu-memory"
    least = min(gpus, key=lambda gpu: gpu.free_bytes)
    found = f"{size_text(least.free_bytes)} of {size_text(least.total_bytes)} free"
    if len(gpus) > 1:
        found = f"at least {found} (GPU {least.index})"
    if least.free_bytes < (1 - _BUSY_SHARE) * least.total_bytes:
        return warn(name, found, f"end what else runs on GPU {least.index}; nvidia-smi lists it")
    return ok(name, found)


def check_driver_runs_cuda(
    check_name: str, built_for: tuple[int, int], driver: Driver, has_run: bool, what: str
) -> Check:
    """Compare the driver with the CUDA release that ``what`` was built with.

    From CUDA 11 on, any driver of a major version's range runs all its minor releases. has_run:
    a kernel did run, as it does with NVIDIA's forward-compatibility package on an older driver.
    """
    major, minor = built_for
    branch = int(driver.version.split(".")[0])
    oldest = _OLDEST_DRIVER.get(major)
    found = f"{what} is built with CUDA {major}.{minor}, driver {driver.version}"
    if oldest is None:
        if driver.cuda >= built_for or has_run:
            return ok(check_name, found)
        return warn(check_name, found, f"install a driver for CUDA {major}.{minor}")
    if branch >= oldest:
        how = "" if driver.cuda >= built_for else " (minor version compatibility)"
        return ok(check_name, found + how)
    if has_run:
        return ok(check_name, f"{found}, yet kernels run (forward compatibility)")
    older = [m for m, least in _OLDEST_DRIVER.items() if least <= branch]
    instead = f", or use a build for CUDA {max(older)}" if older else ""
    return fail(check_name, found, f"install driver {oldest} or newer{instead}")


def too_new_for_volta(driver: Driver) -> bool:
    """Whether this driver no longer knows Volta (V100)."""
    return bool(driver.version) and int(driver.version.split(".")[0]) > _NEWEST_FOR_VOLTA


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

    from image_classification.devices.architectures import build_lacks

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
    from image_classification.devices.affinity import MODES, set_affinity

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
