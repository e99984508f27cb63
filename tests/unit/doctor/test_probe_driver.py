import sys
from types import ModuleType

import pynvml as real
import pytest

from image_classification.doctor.gpu import (
    Driver,
    check_driver,
    check_driver_runs_cuda,
    check_gpus,
    read_driver,
    too_new_for_volta,
)
from tests.support.fake_nvml import FakeGpu, fake_nvml

V100 = FakeGpu("Tesla V100-SXM2-16GB")


def read_with(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return read_driver()


def test_the_stand_in_has_only_names_that_the_real_library_has() -> None:
    names = set(vars(fake_nvml())) - set(vars(ModuleType("pynvml"))) - {"calls"}
    assert names <= set(vars(real))


def test_a_healthy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml((V100, V100))
    driver = read_with(module, monkeypatch)
    assert module.calls == ["init", "shutdown"]
    assert driver.cuda == (12, 8)
    check = check_driver(driver, needs_gpu=True)
    assert (check.status, check.found) == ("ok", "570.124.06, runs up to CUDA 12.8 by itself")
    health, memory = check_gpus(driver)
    assert health.found == "2 answer: 2 x Tesla V100-SXM2-16GB"
    assert memory.status == "ok" and memory.found.startswith("at least 16.0 GiB of 16.0 GiB")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (real.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (real.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
        (real.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (real.NVML_ERROR_UNKNOWN, "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_answer(
    error: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake_nvml(init_error=error)
    check = check_driver(read_with(module, monkeypatch), needs_gpu=False)
    assert check.status == "fail" and words in check.remedy
    assert str(real.NVMLError(error)) in check.found
    assert module.calls == []


def test_no_driver_matters_only_to_a_gpu_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = read_with(fake_nvml(init_error=real.NVML_ERROR_LIBRARY_NOT_FOUND), monkeypatch)
    assert check_driver(driver, needs_gpu=False).status == "skipped"
    needed = check_driver(driver, needs_gpu=True)
    assert needed.status == "fail" and "--gpus all" in needed.remedy
    assert check_gpus(driver) == []


def test_a_library_without_capabilities_loses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    other = FakeGpu("BI-V100", capability=None)
    driver = read_with(fake_nvml((V100, other)), monkeypatch)
    assert [gpu.capability for gpu in driver.gpus] == [(7, 0), (0, 0)]
    assert [check.status for check in check_gpus(driver)] == ["ok", "ok"]


def test_a_question_refused_after_the_start_still_ends_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = fake_nvml((V100,), query_error=real.NVML_ERROR_NO_PERMISSION)
    driver = read_with(module, monkeypatch)
    assert module.calls == ["init", "shutdown"]
    assert check_driver(driver, needs_gpu=False).status == "fail"


def test_a_lost_gpu_is_named_and_the_others_are_still_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = FakeGpu("Tesla V100-SXM2-16GB", error=real.NVML_ERROR_GPU_IS_LOST)
    health, memory = check_gpus(read_with(fake_nvml((V100, lost)), monkeypatch))
    assert health.status == "fail" and "GPU 1 Tesla V100" in health.found
    assert "GPU is lost" in health.found and memory.status == "ok"


def test_memory_that_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = FakeGpu("Tesla V100-SXM2-16GB", free_bytes=9 * 2**30)
    _, memory = check_gpus(read_with(fake_nvml((V100, busy)), monkeypatch))
    assert memory.status == "warn" and "GPU 1" in memory.remedy


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    check = check_driver(read_driver(), needs_gpu=True)
    assert check.status == "warn" and "nvidia-ml-py" in check.remedy


@pytest.mark.parametrize(
    ("built", "version", "cuda", "has_run", "status", "words"),
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
def test_driver_against_the_cuda_of_a_build(
    built: tuple[int, int],
    version: str,
    cuda: tuple[int, int],
    has_run: bool,
    status: str,
    words: str,
) -> None:
    check = check_driver_runs_cuda("driver-cuda", built, Driver(version, cuda), has_run, "torch")
    assert check.status == status and words in check.found


def test_the_remedy_for_an_old_driver_names_the_build_it_can_run() -> None:
    check = check_driver_runs_cuda("x", (13, 0), Driver("570.1", (12, 8)), False, "DALI")
    assert check.remedy == "install driver 580 or newer, or use a build for CUDA 12"


def test_volta_ends_with_driver_580() -> None:
    assert too_new_for_volta(Driver("590.10"))
    assert not too_new_for_volta(Driver("580.65.06")) and not too_new_for_volta(Driver())
