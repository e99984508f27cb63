"""Checks of GPUs: as NVIDIA's driver reports them, and as torch uses them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from image_classification.config.placement import device_matches
from image_classification.config.schema import GPU_AFFINITY_MODES
from image_classification.core.errors import DeviceError
from image_classification.core.host import open_nvml
from image_classification.core.program import command
from image_classification.core.units import size
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult, fail, ok, skipped, warn

if TYPE_CHECKING:
    from image_classification.doctor.checks import Context

# NVIDIA CUDA Compatibility, "Minor version compatibility": the oldest driver branch that runs
# programs built with any release of a CUDA major version.
_MIN_DRIVER = {11: 450, 12: 525, 13: 580}
_LAST_DRIVER_FOR_VOLTA = 580
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
    "was updated while it was loaded; in a container, restart the container",
    "NVMLError_NoPermission": f"let this user open /dev/nvidia*, or {_GPUS_INTO_CONTAINER}",
}


@dataclass(frozen=True)
class GpuState:
    """One GPU as the driver reports it. error: why it cannot be read; "" if it can.

    capability: CUDA compute capability, (major, minor); (0, 0) if the driver does not report it.
    """

    index: int
    name: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    error: str = ""
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver. version: "" if there is none.

    cuda: (major, minor) of the newest release that it runs by itself. error, error_kind: text and
    class of NVML's error; "" without an error.
    """

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[GpuState, ...] = ()
    error: str = ""
    error_kind: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether this machine or container has no driver."""
        return self.error_kind == "NVMLError_LibraryNotFound"

    @property
    def branch(self) -> int:
        """The first number of the version; 0 if there is none."""
        return int(self.version.split(".")[0]) if self.version else 0


def read_driver() -> Driver:
    """Return the driver and its GPUs, or the error."""
    lib, unavailable = open_nvml()
    if lib is None:
        return Driver(error=str(unavailable), error_kind=type(unavailable).__name__)
    try:
        version = str(lib.nvmlSystemGetDriverVersion())
        number = int(lib.nvmlSystemGetCudaDriverVersion())
        gpus = tuple(_gpu_state(lib, index) for index in range(lib.nvmlDeviceGetCount()))
        return Driver(version, (number // 1000, number % 1000 // 10), gpus)
    except lib.NVMLError as error:
        return Driver(error=str(error), error_kind=type(error).__name__)
    finally:
        lib.nvmlShutdown()


def _gpu_state(lib: ModuleType, index: int) -> GpuState:
    name = ""
    try:
        handle = lib.nvmlDeviceGetHandleByIndex(index)
        name = str(lib.nvmlDeviceGetName(handle))
        memory = lib.nvmlDeviceGetMemoryInfo(handle)
    except lib.NVMLError as error:
        return GpuState(index, name, error=str(error))
    try:
        capability = tuple(lib.nvmlDeviceGetCudaComputeCapability(handle))
    except lib.NVMLError:  # missing in the libraries of some other makers
        capability = (0, 0)
    return GpuState(index, name, int(memory.total), int(memory.free), "", capability)


def check_gpus(context: Context) -> Iterator[CheckResult]:
    """Yield driver, gpu-health, gpu-memory, gpus, gpu-kernels, driver-cuda."""
    needs_gpu = context.platform_settings.get("platform.device") == "cuda"
    driver = context.driver = read_driver()  # before a CUDA context uses memory
    error = ""
    try:
        context.torch = context.probe(try_kernels)
    except ProbeError as failed:
        error = str(failed)
    # Other makers' GPUs support torch's CUDA interface without NVIDIA's driver.
    yield check_driver(driver, needs_gpu and not context.num_gpus)
    yield from _check_health(driver)
    torch = context.torch
    if error:
        remedy = "see nvidia-smi and dmesg (Xid) for the GPU, python -c 'import torch' for torch"
        yield fail("gpus", f"torch cannot list them: {error}", remedy)
        return
    yield _check_devices(context, torch, needs_gpu)
    yield _check_kernels(torch)
    if torch.cuda is not None and driver.version:
        major, minor = (int(part) for part in f"{torch.cuda}.0".split(".")[:2])
        yield check_driver_runs_cuda(
            "driver-cuda", (major, minor), driver, torch.kernels_run, "torch"
        )


def check_driver(driver: Driver, needs_gpu: bool) -> CheckResult:
    """Judge whether there is a working driver."""
    name = "driver"
    if driver.error_kind == "ImportError":
        return warn(name, f"not read: {driver.error}", "pip install nvidia-ml-py")
    if driver.is_absent and not needs_gpu:
        return skipped(name, "no NVIDIA driver here")
    if driver.error:
        remedy = _INIT_REMEDIES.get(driver.error_kind, "see nvidia-smi and dmesg")
        return fail(name, f"NVIDIA's driver: {driver.error}", remedy)
    return ok(name, "{}, runs up to CUDA {}.{} by itself".format(driver.version, *driver.cuda))


def _check_health(driver: Driver) -> Iterator[CheckResult]:
    """Judge each GPU of the driver: whether it can be read, and its free memory."""
    working = [gpu for gpu in driver.gpus if not gpu.error]
    for gpu in driver.gpus:
        if gpu.error:
            remedy = "take the machine out of use; nvidia-smi -q and dmesg (Xid) show more"
            yield fail("gpu-health", f"GPU {gpu.index} {gpu.name}: {gpu.error}", remedy)
    if not working:
        return
    if len(working) == len(driver.gpus):
        yield ok("gpu-health", f"{len(working)} work: {counted(working)}")
    fullest = min(working, key=lambda gpu: gpu.free_bytes)
    found = f"{size(fullest.free_bytes)} of {size(fullest.total_bytes)} free"
    if len(working) > 1:
        found = f"at least {found} (GPU {fullest.index})"
    if fullest.free_bytes < (1 - _BUSY_SHARE) * fullest.total_bytes:
        remedy = f"end the other processes on GPU {fullest.index}; nvidia-smi lists them"
        yield warn("gpu-memory", found, remedy)
    else:
        yield ok("gpu-memory", found)


def counted(gpus: Iterable[GpuState | TorchGpu]) -> str:
    """Return ``8 x NAME``, for each kind of GPU."""
    names = [gpu.name for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def check_driver_runs_cuda(
    check_name: str, built_for: tuple[int, int], driver: Driver, has_run: bool, what: str
) -> CheckResult:
    """Compare the driver with the CUDA release that ``what`` is built with.

    From CUDA 11 on, any driver for a major version runs all its minor releases. has_run: a kernel
    ran, as it does on an older driver with NVIDIA's forward-compatibility package.
    """
    major, minor = built_for
    minimum = _MIN_DRIVER.get(major)
    found = f"{what} is built with CUDA {major}.{minor}, driver {driver.version}"
    if minimum is None:
        if driver.cuda >= built_for or has_run:
            return ok(check_name, found)
        return warn(check_name, found, f"install a driver for CUDA {major}.{minor}")
    if driver.branch >= minimum:
        how = "" if driver.cuda >= built_for else " (minor version compatibility)"
        return ok(check_name, found + how)
    if has_run:
        return ok(check_name, f"{found}; kernels run (forward compatibility)")
    older = [release for release, least in _MIN_DRIVER.items() if least <= driver.branch]
    alternative = f", or use a build for CUDA {max(older)}" if older else ""
    return fail(check_name, found, f"install driver {minimum} or newer{alternative}")


_TOLERANCE = 1e-2


@dataclass(frozen=True)
class TorchGpu:
    """One GPU as torch sees it. lacks: why this build has no kernels for it. error: of a kernel."""

    name: str
    capability: tuple[int, int]
    lacks: str = ""
    error: str = ""


@dataclass(frozen=True)
class TorchGpus:
    """torch's version and GPUs. cuda: the release it is built with; None without CUDA."""

    version: str = ""
    cuda: str | None = None
    gpus: tuple[TorchGpu, ...] = ()

    @property
    def kernels_run(self) -> bool:
        """Whether there are GPUs, and kernels run on all of them."""
        return bool(self.gpus) and not any(gpu.error or gpu.lacks for gpu in self.gpus)


def try_kernels() -> TorchGpus:
    """Probe: multiply matrices on every GPU that torch sees, and compare with the CPU's result."""
    import torch

    from image_classification.devices.capabilities import build_lacks

    version = str(torch.__version__)
    if torch.version.cuda is None:
        return TorchGpus(version, None)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    archs = torch.cuda.get_arch_list()
    gpus = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        capability = torch.cuda.get_device_capability(index)
        lacks = build_lacks(capability, archs, name, version) or ""
        error = ""
        if not lacks:
            matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(index))
            try:
                on_gpu = matrix.to(torch.device("cuda", index))
                difference = float(((on_gpu @ on_gpu).cpu() - matrix @ matrix).abs().max())
                if not difference < _TOLERANCE:  # also where it is NaN
                    error = f"a matrix product is wrong by {difference:.3g}"
            except RuntimeError as failed:  # the kind that torch.cuda raises
                error = str(failed).strip().splitlines()[0]
        gpus.append(TorchGpu(name, capability, lacks, error))
    return TorchGpus(version, str(torch.version.cuda), tuple(gpus))


def _check_devices(context: Context, torch: TorchGpus, needs_gpu: bool) -> CheckResult:
    """Compare the GPUs with those of a GPU platform."""
    name = "gpus"
    found = counted(torch.gpus) or "torch sees no GPU"
    if not needs_gpu:
        return ok(name, found) if torch.gpus else skipped(name, found)
    platform = context.platform_settings
    wanted_name = str(platform.get("platform.device_name", ""))
    # None: all that are visible.
    wanted_count = platform.get("platform.num_devices", 1) or max(1, len(torch.gpus))
    if not torch.gpus:
        remedy = (
            "give the container the GPUs (docker run --gpus all), see CUDA_VISIBLE_DEVICES and "
            "nvidia-smi"
        )
        if torch.cuda is None:
            found, remedy = "torch is built without CUDA", "install torch with CUDA"
        if "V100" in wanted_name and context.driver.branch > _LAST_DRIVER_FOR_VOLTA:
            version = context.driver.version
            remedy = f"install driver 580, the last for V100, instead of {version}"
        found += f"; the platform has {wanted_count} x {wanted_name or 'GPU'}"
        return fail(name, found, f"{remedy}; or use --platform CPU")
    problems = []
    if wanted_name and not all(device_matches(wanted_name, gpu.name) for gpu in torch.gpus):
        problems.append(f"the platform's are {wanted_name}")
    if len(torch.gpus) < wanted_count:
        problems.append(f"the platform has {wanted_count}")
    if problems:
        remedy = (
            "a run uses these at the same global batch, and its speed is not compared; "
            f"{command('launch')} --list platforms shows other platforms"
        )
        return warn(name, f"{found}; {', '.join(problems)}", remedy)
    is_exact = len(torch.gpus) == wanted_count
    return ok(name, found if is_exact else f"{found}; {wanted_count} are used")


def _check_kernels(torch: TorchGpus) -> CheckResult:
    """Judge whether torch's kernels run on every GPU."""
    name = "gpu-kernels"
    if not torch.gpus:
        return skipped(name, f"no GPU to run them on (torch {torch.version}, CUDA {torch.cuda})")
    lacking = next((gpu.lacks for gpu in torch.gpus if gpu.lacks), "")
    if lacking:
        found, _, remedy = lacking.rpartition("; ")
        return fail(name, found, remedy)
    for index, gpu in enumerate(torch.gpus):
        if gpu.error:
            remedy = "see nvidia-smi for other processes, and dmesg (Xid) for broken hardware"
            return fail(name, f"GPU {index} {gpu.name}: {gpu.error}", remedy)
    kinds = sorted({"sm_{}{}".format(*gpu.capability) for gpu in torch.gpus})
    found = f"a matrix product is correct on all {len(torch.gpus)} ({' '.join(kinds)})"
    return ok(name, found)


def check_affinity(context: Context) -> Iterator[CheckResult]:
    """Try the modes of ``--gpu-affinity`` and judge the platform's."""
    name = "gpu-affinity"
    if not context.num_gpus:
        yield skipped(name, "no GPU here")
        return
    needs = context.needs
    count = needs.num_devices if needs.platform else context.num_gpus
    errors = context.probe(try_affinity_modes, count)
    usable = [mode for mode, error in errors.items() if not error]
    if errors.get(needs.gpu_affinity):
        found, _, remedy = errors[needs.gpu_affinity].rpartition("; ")
        yield fail(name, f"{needs.gpu_affinity}: {found}", remedy)
    elif usable:
        yield ok(name, f"{needs.gpu_affinity} is the platform's; usable: {', '.join(usable)}")
    else:
        found, _, remedy = next(iter(errors.values())).rpartition("; ")
        yield warn(name, f"no mode is usable: {found}", remedy)


def try_affinity_modes(num_devices: int) -> dict[str, str]:
    """Probe: try each mode of ``--gpu-affinity``; return mode -> error, "" if it is usable.

    Leaves the process bound as before.
    """
    from image_classification.devices.cuda import set_affinity

    before = os.sched_getaffinity(0)
    errors = {}
    for mode in GPU_AFFINITY_MODES[1:]:  # all but none
        errors[mode] = ""
        try:
            set_affinity(mode, 0, num_devices)
        except DeviceError as error:
            errors[mode] = error.message
        finally:
            os.sched_setaffinity(0, before)
    return errors
