from dataclasses import replace

import pytest
import torch
import torchvision

from image_classification.doctor import probe as preload
from image_classification.doctor.software import (
    check_apex,
    check_nvml_package,
    check_pillow,
    check_python,
    check_torch,
    check_torchvision,
    import_versions,
    torchvision_wants,
)
from image_classification.engine.precision.apex import Apex


def test_what_is_installed_here_is_good() -> None:
    versions = import_versions()
    assert versions["torch"] == torch.__version__
    assert versions["torchvision"] == torchvision.__version__
    checks = [
        check_python(),
        check_torch(versions),
        check_torchvision(versions, torchvision_wants()),
        check_pillow(versions),
        check_nvml_package(),
    ]
    assert [check.status for check in checks] == ["ok"] * 5
    assert torchvision_wants() == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("version", "status"), [("2.9.1", "fail"), ("2.10.0+cu128", "ok"), ("3.0.0", "ok")]
)
def test_the_least_torch(version: str, status: str) -> None:
    assert check_torch({"torch": version}).status == status


@pytest.mark.parametrize(
    ("torch_version", "vision_version", "wanted", "words"),
    [
        ("2.11.0", "0.25.0", "2.10.0", "made for torch 2.10.0"),
        ("2.10.0+cpu", "0.25.0+cu128", "2.10.0", "other builds"),
    ],
)
def test_a_pair_that_does_not_match(
    torch_version: str, vision_version: str, wanted: str, words: str
) -> None:
    versions = {"torch": torch_version, "torchvision": vision_version}
    check = check_torchvision(versions, wanted)
    assert check.status == "fail" and words in check.found


def test_a_broken_import_is_told_as_it_first_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setitem(preload.FAILURES, "torchvision.io", why)
    with pytest.raises(ImportError, match=r"torchvision\.io: RuntimeError: operator"):
        import_versions()


def test_what_of_apex_is_there() -> None:
    apex = Apex("0.1", is_nvidia=True, has_amp=False, has_kernels=True)
    assert check_apex(None).status == "skipped"
    assert check_apex(apex).status == "ok" and check_apex(apex).found == "0.1 (fused optimizers)"
    broken = check_apex(apex, "undefined symbol")
    assert broken.status == "warn" and "undefined symbol" in broken.found
    for useless in (replace(apex, is_nvidia=False), replace(apex, has_kernels=False)):
        assert check_apex(useless).status == "skipped"
