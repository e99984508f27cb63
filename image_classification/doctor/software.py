"""Checks of Python and its packages: torch, torchvision, Pillow, NVML, Apex, DALI."""

from __future__ import annotations

import importlib
import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from types import ModuleType

from image_classification.doctor.probe import one_line
from image_classification.doctor.report import CheckResult, fail, ok, skipped, warn

_MIN_PYTHON = (3, 10)
# Older releases run code from a checkpoint file even with weights_only (CVE-2025-32434 and
# CVE-2026-24747).
_MIN_TORCH = (2, 10)
TORCH_REMEDY = "pip install torch and torchvision together, from one index, in the pinned versions"


def check_python() -> CheckResult:
    """Judge the interpreter's version."""
    found, remedy = sys.version.split()[0], "install Python 3.10 or newer"
    return ok("python", found) if sys.version_info >= _MIN_PYTHON else fail("python", found, remedy)


def import_versions() -> dict[str, str]:
    """Probe: import torch, torchvision and Pillow; return their versions.

    Raises:
        ImportError: one of them, or a compiled part, cannot be imported; with the reason.
    """
    for module in ("torch", "torch.distributed", "torchvision.io", "torchvision.transforms.v2"):
        _import(module)
    names = {"torch": "torch", "torchvision": "torchvision", "pillow": "PIL"}
    return {package: _import(module).__version__ for package, module in names.items()}


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        raise ImportError(f"{module}: {one_line(error)}") from error


def check_torch(versions: Mapping[str, str]) -> CheckResult:
    """Judge torch's version."""
    name, found = "torch", versions["torch"]
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < _MIN_TORCH:
        minimum = ".".join(map(str, _MIN_TORCH))
        remedy = f"install torch {minimum} or newer"
        return fail(name, f"{found} runs code from other people's .pth files", remedy)
    return ok(name, found)


def check_torchvision(versions: Mapping[str, str], wanted_torch: str | None) -> CheckResult:
    """Judge the pair. wanted_torch: the release that torchvision requires; None: any."""
    name, found = "torchvision", versions["torchvision"]
    torch_version, _, torch_build = versions["torch"].partition("+")
    build = found.partition("+")[2]
    if wanted_torch is not None and torch_version != wanted_torch:
        return fail(
            name, f"{found} requires torch {wanted_torch}, not {torch_version}", TORCH_REMEDY
        )
    if build and torch_build and build != torch_build:
        text = f"{found} and torch {versions['torch']} are different builds"
        return fail(name, text, TORCH_REMEDY)
    return ok(name, found)


def torchvision_wants() -> str | None:
    """Return the torch release that the torchvision package requires; None if it names none."""
    try:
        wanted = requires("torchvision") or []
    except PackageNotFoundError:
        return None
    found = (re.match(r"torch\s*\(?==\s*([0-9.]+)", line) for line in wanted)
    return next((match[1] for match in found if match), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_nvml_package() -> CheckResult:
    """Warn of the deprecated package ``pynvml``, whose module has the same name."""
    name = "nvidia-ml-py"
    old, installed = _version("pynvml"), _version(name)
    if old is not None:
        remedy = "pip uninstall -y pynvml; pip install --force-reinstall nvidia-ml-py"
        return warn(name, f"the deprecated package pynvml {old} is installed as well", remedy)
    if installed is None:
        found = "not installed: driver and GPU memory are not checked"
        return warn(name, found, f"pip install {name}")
    return ok(name, installed)


@dataclass(frozen=True)
class ApexState:
    """description: "" if Apex is not installed. error: of its import, "" if there was none."""

    description: str = ""
    is_usable: bool = False
    error: str = ""


def import_apex() -> ApexState:
    """Probe: find Apex and, if this project could use it, import it."""
    from image_classification.engine.precision.apex import find_apex

    apex = find_apex()
    if apex is None:
        return ApexState()
    is_usable, error = apex.is_nvidia and apex.has_kernels, ""
    if is_usable:
        try:
            for module in ("torch", "amp_C", "apex.optimizers"):
                importlib.import_module(module)
        except Exception as failed:  # for example built for another torch
            error = one_line(failed)
    return ApexState(apex.describe(), is_usable, error)


def check_apex(apex: ApexState) -> CheckResult:
    """Describe what of NVIDIA Apex is installed, and whether it can be imported."""
    name, found = "apex", apex.description
    if not found:
        return skipped(name, "not installed; only amp_backend or implementation apex needs it")
    if apex.error:
        remedy = "build Apex for this torch, or leave amp_backend and implementation at torch"
        return warn(name, f"{found} cannot be imported: {apex.error}", remedy)
    if not apex.is_usable:
        return skipped(name, f"{found}: amp_backend and implementation apex are refused")
    return ok(name, found)


DALI_WHEELS = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""Packages that provide the same module, so only one may be installed."""

_WIDTH_PX, _HEIGHT_PX = 96, 64
_MAX_MEAN_DIFFERENCE = 4.0
_INSTALL_DALI = "pip install 'image-classification[dali]'"
DALI_REMEDIES = {
    "dali-cpu": f"reinstall it ({_INSTALL_DALI}), or run with --data-backend pytorch",
    "dali-gpu": "install the DALI wheel for the driver's CUDA and its libnpp (the image has both), "
    "or run with --data-backend dali-cpu",
}
"""What to try if DALI does not decode, by check."""


@dataclass(frozen=True)
class Decoded:
    """DALI's result for one JPEG. cuda: (major, minor) of the release it is built with.

    mean_difference: of its pixels from Pillow's, in steps of 0..255.
    """

    version: str
    cuda: tuple[int, int]
    shape: tuple[int, ...]
    mean_difference: float


def installed_dali_wheels() -> list[str]:
    """Return DALI's installed packages with their versions."""
    return [f"{name} {v}" for name in DALI_WHEELS if (v := _version(name)) is not None]


def decode_with_dali(on_gpu: bool) -> Decoded:
    """Probe: decode a small JPEG with a DALI pipeline, on the CPU or mixed on GPU 0."""
    import numpy as np
    from nvidia import dali
    from nvidia.dali import fn, pipeline_def, types
    from PIL import Image

    rows = np.linspace(0, 255, _HEIGHT_PX)[:, None, None]
    columns = np.linspace(0, 255, _WIDTH_PX)[None, :, None]
    pixels = np.broadcast_to((rows + columns) / 2, (_HEIGHT_PX, _WIDTH_PX, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    expected = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32)

    def define() -> object:
        content = fn.external_source(name="content", dtype=types.UINT8, ndim=1)
        device = "mixed" if on_gpu else "cpu"
        return fn.decoders.image(content, device=device, output_type=types.RGB)

    pipeline = pipeline_def(batch_size=1, num_threads=1, device_id=0 if on_gpu else None)(define)()
    pipeline.build()
    pipeline.feed_input("content", [np.frombuffer(file.getvalue(), dtype=np.uint8)])
    (images,) = pipeline.run()
    image = np.asarray((images.as_cpu() if on_gpu else images).at(0), dtype=np.float32)
    difference = float("inf")
    if image.shape == expected.shape:
        difference = float(np.abs(image - expected).mean())
    number = int(dali.__cuda_version__)
    cuda = (number // 1000, number % 1000 // 100)
    return Decoded(dali.__version__, cuda, image.shape, difference)


def check_dali_package(wheels: list[str], is_needed: bool) -> CheckResult:
    """Judge the installed packages. is_needed: the platform's data backend is one of DALI's."""
    name = "dali"
    if len(wheels) > 1:
        found = f"{' and '.join(wheels)} are both installed and provide the same module"
        remedy = f"pip uninstall -y {' '.join(DALI_WHEELS)}, then {_INSTALL_DALI}"
        return fail(name, found, remedy)
    if wheels:
        return ok(name, wheels[0])
    if is_needed:
        remedy = f"{_INSTALL_DALI}, or run with --data-backend pytorch"
        return fail(name, "not installed; this platform's data backend is DALI's", remedy)
    return skipped(name, "not installed; only the dali-cpu and dali-gpu data backends need it")


def check_decoded(name: str, decoded: Decoded) -> CheckResult:
    """Judge the image that `decode_with_dali` returned."""
    found = (
        f"DALI {decoded.version} (CUDA {decoded.cuda[0]}.{decoded.cuda[1]}) decoded a JPEG of "
        f"{_WIDTH_PX} x {_HEIGHT_PX}"
    )
    has_shape = tuple(decoded.shape) == (_HEIGHT_PX, _WIDTH_PX, 3)
    if not has_shape or decoded.mean_difference > _MAX_MEAN_DIFFERENCE:
        found += f" to {decoded.shape}, with a mean difference of {decoded.mean_difference:.3g}"
        return fail(name, f"{found} from Pillow's pixels", DALI_REMEDIES[name])
    return ok(name, found)
