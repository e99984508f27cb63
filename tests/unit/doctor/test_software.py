import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from image_classification.devices.accelerator import get_accelerator
from image_classification.doctor import software
from image_classification.doctor.gpu import Driver, TorchGpu, TorchGpus
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult
from image_classification.doctor.requirements import RunNeeds
from image_classification.doctor.software import (
    check_apex,
    check_dali,
    check_gloo,
    check_nccl,
    check_nvml_package,
    check_python,
    check_torch,
    import_versions,
    judge_all_reduce,
    torchvision_wants,
)
from image_classification.engine import precision
from image_classification.launch.recorder import torch_environment
from tests.support.doctor import context

RELEASE = torch.__version__.partition("+")[0]
CRASH = ProbeError("crashed with SIGSEGV")


def test_installed_packages_are_ok() -> None:
    checks = [*check_python(context()), *check_torch(context()), *check_nvml_package(context())]
    assert {check.status for check in checks} == {"ok"}
    found = {check.name: check.found for check in checks}
    assert found["torch"] == torch.__version__ and found["torchvision"] == torchvision.__version__
    assert list(found) == ["python", "torch", "torchvision", "pillow", "nvidia-ml-py"]
    assert torchvision_wants() == RELEASE


@pytest.mark.parametrize(
    ("torch_version", "vision_version", "failed", "words"),
    [
        ("2.9.1", "0.24.1", "torch", "2.9.1 runs code"),
        ("3.0.0", "0.25.0", "torchvision", f"requires torch {RELEASE}, not 3.0.0"),
        (f"{RELEASE}+cpu", "0.25.0+cu128", "torchvision", "different builds"),
    ],
)
def test_versions_that_do_not_match(
    torch_version: str, vision_version: str, failed: str, words: str
) -> None:
    versions = {"torch": torch_version, "torchvision": vision_version, "pillow": "12"}
    checks = {check.name: check for check in check_torch(context(versions))}
    assert checks[failed].status == "fail" and words in checks[failed].found
    assert (checks["torch"].status == "fail") == (failed == "torch")


def test_failed_import_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ImportError, match=r"^torchvision\.io: ModuleNotFoundError: "):
        import_versions()
    (check,) = check_torch(context())
    assert check.status == "fail" and check.found.startswith("cannot be imported: ImportError")


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ({"nvidia-ml-py": "13"}, "ok"),
        ({"nvidia-ml-py": "13", "pynvml": "11"}, "warn"),
        ({}, "warn"),
    ],
)
def test_nvml_packages(
    versions: dict[str, str], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "_version", versions.get)
    (check,) = check_nvml_package(context())
    assert check.status == status


@pytest.fixture
def apex_standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "standins")
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def apex() -> CheckResult:
    (check,) = check_apex(context())
    return check


def test_without_apex() -> None:
    assert apex().status == "skipped"


def test_apex_is_described_as_in_the_report(apex_standin: None) -> None:
    check = apex()
    assert check.status == "ok" and check.found.endswith("(fused optimizers, amp)")
    assert torch_environment(get_accelerator("cpu"))["apex"] == check.found


def test_apex_without_kernels(apex_standin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = precision.find_apex()
    assert found is not None
    monkeypatch.setattr(precision, "find_apex", lambda: replace(found, has_kernels=False))
    check = apex()
    assert check.status == "skipped" and "are refused" in check.found


def test_apex_that_cannot_be_imported(
    apex_standin: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "amp_C.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    check = apex()
    assert check.status == "warn" and "undefined symbol" in check.found
    (crashed,) = check_apex(context(CRASH))
    assert crashed.status == "warn" and "crashed with SIGSEGV" in crashed.found


def test_dali_decodes() -> None:
    dali = pytest.importorskip("nvidia.dali")
    package, on_cpu, on_gpu = check_dali(context())
    assert package.status == "ok" and dali.__version__ in package.found
    assert on_cpu.status == "ok" and f"DALI {dali.__version__} (CUDA 1" in on_cpu.found
    assert on_gpu.status == "skipped"


@pytest.mark.parametrize("answer", [CRASH, ("2.4.0", (12, 9), " to (9, 9, 3)")])
def test_dali_that_does_not_decode(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_version", {"nvidia-dali-cuda120": "2.4.0"}.get)
    doctor = context(answer)
    doctor.torch = TorchGpus("2.10.0", "12.8", (TorchGpu("A100", (8, 0)),))
    doctor.driver = Driver("570.1", (12, 8))
    _, on_cpu, on_gpu, *cuda = check_dali(doctor)
    assert on_cpu.status == on_gpu.status == "fail"
    assert "--data-backend pytorch" in on_cpu.remedy and "dali-cpu" in on_gpu.remedy
    assert [check.name for check in cuda] == ([] if answer is CRASH else ["dali-cuda"])


@pytest.mark.parametrize(
    ("versions", "backend", "status", "remedy"),
    [
        ({"nvidia-dali-cuda120": "2", "nvidia-dali-cuda130": "2"}, "", "fail", "uninstall"),
        ({"nvidia-dali-cuda120": "2"}, "dali-gpu", "ok", ""),
        ({}, "pytorch", "skipped", ""),
        ({}, "dali-gpu", "fail", "--data-backend pytorch"),
    ],
)
def test_dali_packages(
    versions: dict[str, str],
    backend: str,
    status: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(software, "_version", versions.get)
    doctor = context(CRASH)
    doctor.needs = RunNeeds(backend=backend)
    check = next(check_dali(doctor))
    assert check.status == status and remedy in check.remedy


@pytest.mark.slow
def test_gloo() -> None:
    (check,) = check_gloo(context())
    assert check.status == "ok" and check.found.startswith("all_reduce over 2 processes on the CPU")


def test_the_slowest_rank_counts() -> None:
    check = judge_all_reduce("gloo", "processes", [(5e-4, 0.05, True), (4e-4, 0.1, True)])
    assert check.found == (
        "all_reduce over 2 processes: 4 bytes 0.50 ms, 64 MiB 100.0 ms, 671 MB/s"
    )


@pytest.mark.parametrize(
    ("backend", "large_s", "is_correct", "status"),
    [
        ("nccl", 0.1, True, "warn"),
        ("gloo", 0.1, True, "ok"),
        ("nccl", 0.01, True, "ok"),
        ("nccl", 0.01, False, "fail"),
    ],
)
def test_slow_nccl_warns_and_a_wrong_sum_fails(
    backend: str, large_s: float, is_correct: bool, status: str
) -> None:
    measured = [(5e-4, large_s, True), (5e-4, large_s, is_correct)]
    check = judge_all_reduce(backend, "GPUs", measured)
    assert check.status == status
    assert ("the sum is wrong" in check.found) == (status == "fail")


def test_nccl_uses_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = context()
    (check,) = check_nccl(doctor)
    assert check.status == "skipped"
    doctor.torch = TorchGpus("2.10.0", "12.8", (TorchGpu("A100", (8, 0)),) * 4)
    calls: list[tuple[object, ...]] = []

    def call_together(
        function: object, arguments: list[tuple[object, ...]], limit_s: float
    ) -> None:
        calls.extend(arguments)
        raise ProbeError("RuntimeError: NCCL error: unhandled system error")

    monkeypatch.setattr(software, "call_together", call_together)
    (check,) = check_nccl(doctor)
    assert [call[:3] for call in calls] == [(rank, 4, "nccl") for rank in range(4)]
    assert check.status == "fail" and "NCCL_DEBUG=INFO" in check.remedy
