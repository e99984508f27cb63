"""Checks of Python and of the packages a run rests on; `import_versions` in its own process."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from image_classification.core.apex import Apex
from image_classification.core.checkup import Check, fail, ok, skipped, warn

_LEAST_PYTHON = (3, 10)
# Older releases run code from a checkpoint file even with weights_only (CVE-2025-32434 and
# CVE-2026-24747).
_LEAST_TORCH = (2, 10)
_SAME_BUILD = "pip install torch torchvision together, both from one index, in the pinned versions"


def check_python() -> Check:
    """Judge the interpreter."""
    found = sys.version.split()[0]
    if sys.version_info < _LEAST_PYTHON:
        return fail("python", found, "install Python 3.10 or newer")
    return ok("python", found)


def import_versions() -> dict[str, str]:
    """Import torch, torchvision with its compiled operators, and Pillow; return their versions.

    Raises ImportError with the reason, where one of the first two cannot be imported.
    """
    from image_classification.engine.preload import FAILURES

    for module, why in FAILURES.items():
        raise ImportError(f"{module}: {why}")
    import PIL
    import torch
    import torchvision
    from torchvision.io import decode_image  # noqa: F401 - the compiled part

    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def check_torch(versions: dict[str, str]) -> Check:
    """Judge torch's version."""
    name, found = "torch", versions["torch"]
    if _numbers(found) < _LEAST_TORCH:
        least = ".".join(map(str, _LEAST_TORCH))
        return fail(name, f"{found} is unsafe with other people's .pth files", f"torch {least} up")
    return ok(name, found)


def check_torchvision(versions: dict[str, str], wanted_torch: str | None) -> Check:
    """Judge the pair. wanted_torch: the release torchvision's package asks for; None: any."""
    name, found = "torchvision", versions["torchvision"]
    have = versions["torch"].partition("+")[0]
    if wanted_torch is not None and have != wanted_torch:
        return fail(name, f"{found} is made for torch {wanted_torch}, here is {have}", _SAME_BUILD)
    build, other = (versions[n].partition("+")[2] for n in ("torch", "torchvision"))
    if build and other and build != other:
        return fail(name, f"{found} and torch {versions['torch']} are other builds", _SAME_BUILD)
    return ok(name, found)


def torchvision_wants() -> str | None:
    """Return the torch release that torchvision's package asks for; None where it names none."""
    try:
        wanted = requires("torchvision") or []
    except PackageNotFoundError:
        return None
    found = (re.match(r"torch\s*\(?==\s*([0-9.]+)", line) for line in wanted)
    return next((match[1] for match in found if match), None)


def check_pillow(versions: dict[str, str]) -> Check:
    """Say which Pillow there is."""
    return ok("pillow", versions["pillow"])


def check_nvml_package() -> Check:
    """Warn of the deprecated package ``pynvml``: nvidia-ml-py's module has that name."""
    name = "nvidia-ml-py"
    try:
        old = version("pynvml")
    except PackageNotFoundError:
        pass
    else:
        remedy = "pip uninstall -y pynvml; pip install --force-reinstall nvidia-ml-py"
        return warn(name, f"the deprecated package pynvml {old} is here too", remedy)
    try:
        return ok(name, version(name))
    except PackageNotFoundError:
        return warn(
            name, "not installed: driver and GPU memory go unchecked", f"pip install {name}"
        )


def import_apex() -> str:
    """Import Apex's optimizers and their CUDA extension; return the torch they were tried with.

    Raises ImportError or OSError with the reason, where they were built for another torch.
    """
    import importlib

    import torch

    for module in ("amp_C", "apex.optimizers"):
        importlib.import_module(module)
    return str(torch.__version__)


def check_apex(apex: Apex | None, error: str = "") -> Check:
    """Say what of NVIDIA Apex is here. error: why its parts cannot be imported; "": they can."""
    name = "apex"
    if apex is None:
        return skipped(name, "not installed; only amp_backend or implementation apex needs it")
    if error:
        remedy = "build Apex for this torch, or leave amp_backend and implementation at torch"
        return warn(name, f"{apex.describe()} cannot be imported: {error}", remedy)
    if not (apex.is_nvidia and apex.has_kernels):
        return skipped(name, f"{apex.describe()}: amp_backend and implementation apex are refused")
    return ok(name, apex.describe())


def import_remedy() -> str:
    """Return what to do where torch or torchvision cannot even be imported."""
    return _SAME_BUILD


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:2])
