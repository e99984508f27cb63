import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from image_classification.devices.accelerator import get_accelerator
from image_classification.doctor import software
from image_classification.doctor.software import (
    ApexState,
    Decoded,
    check_apex,
    check_dali_package,
    check_decoded,
    check_nvml_package,
    check_python,
    check_torch,
    check_torchvision,
    decode_with_dali,
    import_apex,
    import_versions,
    installed_dali_wheels,
    torchvision_wants,
)
from image_classification.launch.recorder import torch_environment


def test_the_installed_packages_are_ok() -> None:
    versions = import_versions()
    assert versions["torch"] == torch.__version__
    assert versions["torchvision"] == torchvision.__version__
    checks = [
        check_python(),
        check_torch(versions),
        check_torchvision(versions, torchvision_wants()),
        check_nvml_package(),
    ]
    assert [check.status for check in checks] == ["ok"] * 4
    assert torchvision_wants() == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("version", "status"), [("2.9.1", "fail"), ("2.10.0+cu128", "ok"), ("3.0.0", "ok")]
)
def test_the_oldest_torch(version: str, status: str) -> None:
    assert check_torch({"torch": version}).status == status


@pytest.mark.parametrize(
    ("torch_version", "vision_version", "wanted", "words"),
    [
        ("2.11.0", "0.25.0", "2.10.0", "requires torch 2.10.0"),
        ("2.10.0+cpu", "0.25.0+cu128", "2.10.0", "different builds"),
    ],
)
def test_a_pair_that_does_not_match(
    torch_version: str, vision_version: str, wanted: str, words: str
) -> None:
    versions = {"torch": torch_version, "torchvision": vision_version}
    check = check_torchvision(versions, wanted)
    assert check.status == "fail" and words in check.found


def test_a_failed_import_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ImportError, match=r"^torchvision\.io: ModuleNotFoundError: "):
        import_versions()


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
    assert check_nvml_package().status == status


@pytest.fixture
def apex_standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "standins")
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def test_without_apex_nothing_is_imported() -> None:
    assert import_apex() == ApexState()


def test_apex_is_imported_and_described_as_in_the_report(apex_standin: None) -> None:
    check = check_apex(import_apex())
    assert check.status == "ok" and check.found.endswith("(fused optimizers, amp)")
    assert torch_environment(get_accelerator("cpu"))["apex"] == check.found


def test_apex_that_cannot_be_imported_warns(
    apex_standin: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "amp_C.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    check = check_apex(import_apex())
    assert check.status == "warn" and "undefined symbol" in check.found


@pytest.mark.parametrize(
    ("apex", "status"),
    [
        (ApexState(), "skipped"),
        (ApexState("0.1", is_usable=False), "skipped"),
        (ApexState("0.1", is_usable=True), "ok"),
        (ApexState("0.1", is_usable=True, error="undefined symbol"), "warn"),
    ],
)
def test_apex(apex: ApexState, status: str) -> None:
    check = check_apex(apex)
    assert check.status == status and apex.error in check.found


def test_dali_decodes() -> None:
    pytest.importorskip("nvidia.dali")
    decoded = decode_with_dali(on_gpu=False)
    assert decoded.shape == (64, 96, 3) and decoded.cuda[0] in (12, 13)
    check = check_decoded("dali-cpu", decoded)
    assert check.status == "ok" and decoded.version in check.found
    assert any(decoded.version in wheel for wheel in installed_dali_wheels())


@pytest.mark.parametrize(
    ("shape", "difference"), [((64, 96, 3), 40.0), ((96, 64, 3), float("inf"))]
)
def test_wrong_pixels_fail(shape: tuple[int, ...], difference: float) -> None:
    check = check_decoded("dali-gpu", Decoded("2.4.0", (12, 9), shape, difference))
    assert check.status == "fail" and "dali-cpu" in check.remedy


@pytest.mark.parametrize(
    ("wheels", "is_needed", "status", "remedy"),
    [
        (["nvidia-dali-cuda120 2.4.0", "nvidia-dali-cuda130 2.4.0"], False, "fail", "uninstall"),
        (["nvidia-dali-cuda120 2.4.0"], True, "ok", ""),
        ([], False, "skipped", ""),
        ([], True, "fail", "--data-backend pytorch"),
    ],
)
def test_dali_packages(wheels: list[str], is_needed: bool, status: str, remedy: str) -> None:
    check = check_dali_package(wheels, is_needed)
    assert check.status == status and remedy in check.remedy
