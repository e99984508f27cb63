"""GPUs by a fake NVML library, and as torch sees them."""

import sys
from typing import Any

import pynvml
import pytest
import torch

from image_classification.config.schema import GPU_AFFINITY_MODES
from image_classification.devices.capabilities import build_lacks
from image_classification.doctor import gpu
from image_classification.doctor.gpu import (
    Driver,
    TorchGpu,
    TorchGpus,
    check_affinity,
    check_driver_runs_cuda,
    check_gpus,
    read_driver,
    try_affinity_modes,
    try_kernels,
)
from image_classification.doctor.report import CheckResult
from image_classification.doctor.requirements import RunNeeds
from tests.support.doctor import context
from tests.support.nvml import FakeDevice, FakeDriver, loaded

V100 = TorchGpu("Tesla V100-SXM2-16GB", (7, 0))
H100 = TorchGpu("NVIDIA H100 80GB HBM3", (9, 0))


def v100(**values: Any) -> FakeDevice:
    return FakeDevice(memory_used_bytes=values.pop("memory_used_bytes", 0), **values)


def run(
    *devices: FakeDevice,
    platform: str | None = None,
    seen: TorchGpus | None = None,
    **driver: Any,
) -> dict[str, CheckResult]:
    """Run the check with a fake driver and the GPUs that torch sees; results by name."""
    fake = FakeDriver(*devices, **driver)
    doctor = context(seen or TorchGpus("2.10.0", "12.8"), platform=platform)
    with loaded(fake):
        checks = {check.name: check for check in check_gpus(doctor)}
    assert fake.users == 0
    return checks


def test_healthy_machine() -> None:
    checks = run(v100(), v100())
    driver, memory = checks["driver"], checks["gpu-memory"]
    assert (driver.status, driver.found) == ("ok", "570.124.06, runs up to CUDA 12.8 by itself")
    assert checks["gpu-health"].found == "2 work: 2 x Tesla V100-SXM2-16GB"
    assert memory.status == "ok" and memory.found.startswith("at least 16.0 GiB of 16.0 GiB")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (pynvml.NVML_ERROR_UNKNOWN, "nvidia-smi"),
    ],
)
@pytest.mark.parametrize("kind", ["init_error", "system_error"])
def test_driver_that_fails(error: int, words: str, kind: str) -> None:
    options: dict[str, Any] = {kind: error}
    check = run(v100(), **options)["driver"]
    assert check.status == "fail" and words in check.remedy
    assert str(pynvml.NVMLError(error)) in check.found


def test_missing_driver_matters_only_to_a_gpu_platform() -> None:
    absent = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    checks = run(init_error=absent)
    assert checks["driver"].status == "skipped" and "gpu-health" not in checks
    needed = run(init_error=absent, platform="DGX1V")["driver"]
    assert needed.status == "fail" and "--gpus all" in needed.remedy
    # Other makers' GPUs need no NVIDIA driver.
    seen = TorchGpus("2.10.0", "12.8", (V100,))
    assert run(init_error=absent, platform="DGX1V", seen=seen)["driver"].status == "skipped"


def test_library_without_capabilities() -> None:
    error = {"nvmlDeviceGetCudaComputeCapability": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    with loaded(FakeDriver(v100(), v100(name="BI-V100", errors=error))):
        driver = read_driver()
    assert [gpu.capability for gpu in driver.gpus] == [(7, 0), (0, 0)]
    assert driver.cuda == (12, 8) and not any(gpu.error for gpu in driver.gpus)


def test_lost_gpu_is_named_and_the_others_are_still_checked() -> None:
    lost = {"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_GPU_IS_LOST}
    checks = run(v100(), v100(errors=lost))
    health = checks["gpu-health"]
    assert health.status == "fail" and "GPU 1 Tesla V100" in health.found
    assert "GPU is lost" in health.found and checks["gpu-memory"].status == "ok"


def test_memory_in_use() -> None:
    memory = run(v100(), v100(memory_used_bytes=7 * 2**30))["gpu-memory"]
    assert memory.status == "warn" and "GPU 1" in memory.remedy


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    check = next(check_gpus(context(TorchGpus("2.10.0", None))))
    assert check.status == "warn" and "nvidia-ml-py" in check.remedy


@pytest.mark.parametrize(
    ("built_for", "version", "cuda", "has_run", "status", "words"),
    [
        ((12, 8), "570.124.06", (12, 8), True, "ok", "driver 570.124.06"),
        ((12, 8), "525.60.13", (12, 0), False, "ok", "minor version compatibility"),
        ((12, 8), "580.65.06", (13, 0), False, "ok", "driver 580"),
        ((12, 8), "470.82.01", (11, 4), False, "fail", "built with CUDA 12.8"),
        ((12, 8), "470.82.01", (11, 4), True, "ok", "forward compatibility"),
        ((13, 0), "570.124.06", (12, 8), False, "fail", "built with CUDA 13.0"),
        ((14, 1), "700.1", (14, 1), False, "ok", "CUDA 14.1"),
        ((14, 1), "600.1", (13, 9), False, "warn", "CUDA 14.1"),
    ],
)
def test_driver_and_cuda_release(
    built_for: tuple[int, int],
    version: str,
    cuda: tuple[int, int],
    has_run: bool,
    status: str,
    words: str,
) -> None:
    driver = Driver(version, cuda)
    check = check_driver_runs_cuda("driver-cuda", built_for, driver, has_run, "torch")
    assert check.status == status and words in check.found


def test_remedy_for_an_old_driver_names_a_build_that_it_runs() -> None:
    check = check_driver_runs_cuda("x", (13, 0), Driver("570.1", (12, 8)), False, "DALI")
    assert check.remedy == "install driver 580 or newer, or use a build for CUDA 12"


def test_kernels_run_on_this_machine() -> None:
    found = try_kernels()
    assert found.version == torch.__version__ and found.cuda == torch.version.cuda
    assert len(found.gpus) == torch.cuda.device_count()
    assert found.kernels_run == (len(found.gpus) > 0)


def seen(*gpus: TorchGpu, cuda: str | None = "12.8") -> TorchGpus:
    return TorchGpus("2.10.0", cuda, gpus)


@pytest.mark.parametrize(
    ("gpus", "status", "words"),
    [
        ((V100,) * 8, "ok", "8 x Tesla V100"),
        ((V100,) * 9, "ok", "8 are used"),
        ((V100,) * 4, "warn", "the platform has 8"),
        ((H100,) * 8, "warn", "the platform's are V100"),
        ((), "fail", "torch sees no GPU"),
    ],
)
def test_devices_of_a_platform(gpus: tuple[TorchGpu, ...], status: str, words: str) -> None:
    check = run(platform="DGX1V", seen=seen(*gpus))["gpus"]
    assert check.status == status and words in check.found


def test_devices_without_a_platform() -> None:
    assert run()["gpus"].status == "skipped"
    assert run(seen=seen(V100))["gpus"].found == "1 x Tesla V100-SXM2-16GB"


def test_platform_gpu_uses_any_number_of_any_gpus() -> None:
    assert run(platform="GPU", seen=seen(V100, V100))["gpus"].status == "ok"
    assert run(platform="GPU", seen=seen(V100, V100))["gpus"].found == "2 x Tesla V100-SXM2-16GB"
    assert run(platform="GPU", seen=seen())["gpus"].status == "fail"


@pytest.mark.parametrize(
    ("cuda", "version", "remedy"),
    [
        ("12.8", "580.65.06", "--gpus all"),
        (None, "580.65.06", "torch with CUDA"),
        ("12.8", "590.10", "install driver 580, the last for V100, instead of 590.10"),
    ],
)
def test_remedy_for_no_gpu(
    cuda: str | None, version: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "read_driver", lambda: Driver(version, (13, 0)))
    assert remedy in run(platform="DGX1V", seen=seen(cuda=cuda))["gpus"].remedy


def test_kernels() -> None:
    assert run()["gpu-kernels"].status == "skipped"
    check = run(seen=seen(V100, H100))["gpu-kernels"]
    assert check.status == "ok" and "sm_70 sm_90" in check.found


def test_architecture_that_the_build_lacks() -> None:
    lacks = build_lacks((7, 0), ("sm_75", "sm_90"), "Tesla V100", "2.12.0")
    assert lacks is not None
    check = run(seen=seen(TorchGpu("Tesla V100", (7, 0), lacks=lacks)))["gpu-kernels"]
    assert check.status == "fail" and "no kernels for Tesla V100 (sm_70)" in check.found
    assert "torch 2.10 (cu128)" in check.remedy


def test_kernel_that_fails() -> None:
    broken = TorchGpu("Tesla V100", (7, 0), error="CUDA error: uncorrectable ECC error")
    check = run(seen=seen(V100, broken))["gpu-kernels"]
    assert check.status == "fail" and check.found.startswith("GPU 1 Tesla V100: CUDA error")


def affinity(errors: dict[str, str], mode: str) -> CheckResult:
    doctor = context(errors)
    doctor.torch, doctor.needs = seen(V100), RunNeeds(gpu_affinity=mode)
    (check,) = check_affinity(doctor)
    return check


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU here")
def test_without_gpus_every_affinity_mode_has_its_error() -> None:
    assert next(check_affinity(context({}))).status == "skipped"
    errors = try_affinity_modes(2)
    assert list(errors) == [mode for mode in GPU_AFFINITY_MODES if mode != "none"]
    check = affinity(errors, "none")
    assert check.status == "warn" and check.remedy == "use --gpu-affinity none"
    assert affinity(errors, "socket").status == "fail"


def test_affinity() -> None:
    errors = {"socket": "", "socket_single_unique": "no CPU core near GPU 1 is left; use none"}
    assert affinity(errors, "none").found.endswith("usable: socket")
    assert affinity(errors, "socket").status == "ok"
    refused = affinity(errors, "socket_single_unique")
    assert refused.status == "fail" and refused.remedy == "use none"
