"""Whether NVIDIA Apex is installed here and what it has: looked up, never imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from image_classification.core.errors import ConfigError

LAST_COMMIT_WITH_AMP = "e13873debc4699d39c6861074b9a3b2a02327f92"
"""NVIDIA removed ``apex.amp`` in the commit after this one, on 8 May 2025."""

_INSTALL = (
    "use an image whose base has Apex (NVIDIA's PyTorch images do), or build one with "
    "--build-arg APEX_COMMIT=COMMIT"
)
_INSTALL_AMP = (
    f"build the image with --build-arg APEX_COMMIT={LAST_COMMIT_WITH_AMP}, the last with apex.amp"
)


@dataclass(frozen=True)
class Apex:
    """The package ``apex`` found here.

    version: of its distribution; None where it has none. is_nvidia: False for the other project
    that has this name on PyPI. has_amp: ``apex.amp`` is there. has_kernels: the CUDA extension
    ``amp_C`` is there, which the fused optimizers need.
    """

    version: str | None
    is_nvidia: bool
    has_amp: bool
    has_kernels: bool

    def describe(self) -> str:
        """Return the version and what of Apex this project can use, on one line."""
        name = self.version or "unknown version"
        if not self.is_nvidia:
            return f"{name}, another project's apex"
        parts = ["fused optimizers"] if self.has_kernels else ["no CUDA extensions"]
        if self.has_amp:
            parts.append("amp")
        return f"{name} ({', '.join(parts)})"


def find_apex() -> Apex | None:
    """Look for the package ``apex``; None where there is none."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]

    def has(name: str) -> bool:
        return any((folder / name / "__init__.py").is_file() for folder in folders)

    try:
        found = version("apex")
    except PackageNotFoundError:
        found = None
    return Apex(
        version=found,
        is_nvidia=has("optimizers") and has("multi_tensor_apply"),
        has_amp=has("amp"),
        has_kernels=importlib.util.find_spec("amp_C") is not None,
    )


def require_optimizers(apex: Apex | None) -> None:
    """Raise ConfigError where ``apex`` has no fused optimizers, with why and the remedy."""
    _require_kernels(apex, "optim.implementation apex", "leave it out for torch's own", _INSTALL)


def require_amp(apex: Apex | None) -> None:
    """Raise ConfigError where ``apex`` has no ``apex.amp``, with why and the remedy."""
    setting, instead = "precision.amp_backend apex", "leave it out for torch's own"
    if apex is not None and apex.is_nvidia and not apex.has_amp:
        raise ConfigError(
            f"{setting}: the Apex here ({apex.describe()}) has no apex.amp, which NVIDIA removed "
            f"in May 2025; {instead}, or {_INSTALL_AMP}"
        )
    _require_kernels(apex, setting, instead, _INSTALL_AMP)


def _require_kernels(apex: Apex | None, setting: str, instead: str, install: str) -> None:
    if apex is None:
        raise ConfigError(f"{setting}: NVIDIA Apex is not installed; {instead}, or {install}")
    if not apex.is_nvidia:
        raise ConfigError(
            f"{setting}: the installed package apex ({apex.version or 'unknown version'}) is not "
            f"NVIDIA's; {instead}, or pip uninstall apex and {install}"
        )
    if not apex.has_kernels:
        raise ConfigError(
            f"{setting}: the Apex here was built without its CUDA extensions (amp_C); {instead}, "
            f"or {install}"
        )
