"""What is found of the package ``apex``, by its files alone."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError
from image_classification.engine.precision.apex import (
    Apex,
    find_apex,
    require_amp,
    require_optimizers,
)

TODAY = Apex("0.1", is_nvidia=True, has_amp=False, has_kernels=True)
OLD = Apex("0.1", is_nvidia=True, has_amp=True, has_kernels=True)
BARE = Apex("0.1", is_nvidia=True, has_amp=True, has_kernels=False)
OTHER = Apex("0.9.10", is_nvidia=False, has_amp=False, has_kernels=False)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a package ``apex`` of these parts on the path; importing it would raise."""

    def make(*parts: str, kernels: bool = False, version: str = "") -> None:
        for part in ("", *parts):
            folder = tmp_path / "apex" / part
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
        if kernels:
            (tmp_path / "amp_C.py").write_text("raise AssertionError('imported')\n")
        if version:
            info = tmp_path / f"apex-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: apex\nVersion: {version}\n"
            )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "apex", raising=False)

    return make


def test_parts_are_found_without_an_import(install: Callable[..., None]) -> None:
    install("optimizers", "multi_tensor_apply", kernels=True, version="0.1")
    assert find_apex() == TODAY
    assert TODAY.describe() == "0.1 (fused optimizers)"
    install("amp")
    assert find_apex() == OLD
    assert OLD.describe() == "0.1 (fused optimizers, amp)"


def test_apex_built_without_kernels(install: Callable[..., None]) -> None:
    install("optimizers", "multi_tensor_apply", "amp")
    found = find_apex()
    assert found == Apex(None, is_nvidia=True, has_amp=True, has_kernels=False)
    assert found.describe() == "unknown version (no CUDA extensions, amp)"


def test_other_project_named_apex(install: Callable[..., None]) -> None:
    install("lib", "amp", version="0.9.10")
    found = find_apex()
    assert found is not None and not found.is_nvidia
    assert found.describe() == "0.9.10, another project's apex"


@pytest.mark.parametrize(
    ("apex", "words"),
    [
        (None, r"amp_backend apex: NVIDIA Apex is not installed; .*APEX_COMMIT="),
        (OTHER, r"package apex \(0\.9\.10\) is not NVIDIA's.*pip uninstall apex"),
        (TODAY, r"has no apex\.amp, which NVIDIA removed in May 2025.*APEX_COMMIT=e13873debc"),
        (BARE, r"without its CUDA extensions \(amp_C\)"),
    ],
)
def test_missing_amp_is_one_error_with_a_remedy(apex: Apex | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        require_amp(apex)
    assert "\n" not in caught.value.message and "leave it out" in caught.value.message


@pytest.mark.parametrize(
    ("apex", "words"),
    [
        (None, r"optim\.implementation apex: NVIDIA Apex is not installed; .*APEX_COMMIT="),
        (OTHER, r"is not NVIDIA's"),
        (BARE, r"without its CUDA extensions \(amp_C\)"),
    ],
)
def test_missing_optimizers(apex: Apex | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_optimizers(apex)


def test_complete_apex_is_accepted() -> None:
    require_optimizers(TODAY)
    require_optimizers(OLD)
    require_amp(OLD)
