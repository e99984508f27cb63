import pytest

from image_classification.doctor.software import (
    Decoded,
    check_decoded,
    check_installed,
    decode,
    installed_wheels,
)


def test_a_real_pipeline_decodes() -> None:
    pytest.importorskip("nvidia.dali")
    decoded = decode(on_gpu=False)
    assert decoded.shape == (64, 96, 3) and decoded.cuda[0] in (12, 13)
    check = check_decoded("dali-cpu", decoded)
    assert check.status == "ok" and decoded.version in check.found
    assert any(decoded.version in wheel for wheel in installed_wheels())


@pytest.mark.parametrize(
    ("shape", "difference"), [((64, 96, 3), 40.0), ((96, 64, 3), float("inf"))]
)
def test_wrong_pixels_fail(shape: tuple[int, ...], difference: float) -> None:
    check = check_decoded("dali-gpu", Decoded("2.4.0", (12, 9), shape, difference))
    assert check.status == "fail" and "dali-cpu" in check.remedy


def test_packages() -> None:
    both = check_installed(["nvidia-dali-cuda120 2.4.0", "nvidia-dali-cuda130 2.4.0"], False)
    assert both.status == "fail" and "pip uninstall" in both.remedy
    assert check_installed(["nvidia-dali-cuda120 2.4.0"], True).status == "ok"
    assert check_installed([], False).status == "skipped"
    needed = check_installed([], True)
    assert needed.status == "fail" and "--data-backend pytorch" in needed.remedy
