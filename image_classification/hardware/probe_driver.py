"""Checks of NVIDIA's driver through its management library: no torch, no CUDA context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from image_classification.core.checkup import Check, fail, ok, skipped, warn
from image_classification.core.sizes import size_text

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
