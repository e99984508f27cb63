"""Checks of Python and of the packages a run rests on; `import_versions` in its own process.

Checks of NVIDIA DALI: whether it is there, which CUDA it is built with, whether it decodes.

`decode` runs in a process of its own, since a library that does not fit the machine can crash.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import numpy as np

from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    skipped,
    warn,
)
from image_classification.engine.precision.apex import Apex

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
    from image_classification.doctor.probe import FAILURES

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


WHEELS = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""They provide one module: never one over the other."""

_WIDTH_PX, _HEIGHT_PX = 96, 64
_TOLERANCE = 4.0
_INSTALL = "pip install 'image-classification[dali]'"


@dataclass(frozen=True)
class Decoded:
    """What DALI made of one JPEG. cuda: the release it is built with.

    mean_difference: of its pixels from Pillow's, in steps of 0..255.
    """

    version: str
    cuda: tuple[int, int]
    shape: tuple[int, ...]
    mean_difference: float


def installed_wheels() -> list[str]:
    """Return DALI's packages here, with their versions."""
    versions = {name: _version(name) for name in WHEELS}
    return [f"{name} {number}" for name, number in versions.items() if number is not None]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def decode(on_gpu: bool) -> Decoded:
    """Decode a small JPEG with a real pipeline: on the CPU, or mixed on GPU 0."""
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
    number = int(dali.__cuda_version__)
    return Decoded(
        dali.__version__,
        (number // 1000, number % 1000 // 100),
        image.shape,
        float(np.abs(image - expected).mean()) if image.shape == expected.shape else float("inf"),
    )


def check_installed(wheels: list[str], is_needed: bool) -> Check:
    """Judge the packages alone. is_needed: the platform's data backend is DALI's."""
    name = "dali"
    if len(wheels) > 1:
        return fail(
            name,
            f"{' and '.join(wheels)} are both here and share one module",
            f"pip uninstall -y {' '.join(WHEELS)}, then {_INSTALL}",
        )
    if wheels:
        return ok(name, wheels[0])
    if is_needed:
        remedy = f"{_INSTALL}, or run with --data-backend pytorch"
        return fail(name, "not installed; this platform's data backend is DALI's", remedy)
    return skipped(name, "not installed; only the dali-cpu and dali-gpu data backends need it")


def check_decoded(name: str, decoded: Decoded) -> Check:
    """Judge what `decode` returned."""
    found = (
        f"DALI {decoded.version} (CUDA {decoded.cuda[0]}.{decoded.cuda[1]}) decoded a JPEG of "
        f"{_WIDTH_PX} x {_HEIGHT_PX}"
    )
    if decoded.shape != (_HEIGHT_PX, _WIDTH_PX, 3) or decoded.mean_difference > _TOLERANCE:
        return fail(
            name,
            f"{found} to {decoded.shape}, {decoded.mean_difference:.3g} off Pillow's pixels",
            decode_remedy(name),
        )
    return ok(name, found)


def decode_remedy(name: str) -> str:
    """Return what to try where DALI does not decode. name: the check's."""
    if name == "dali-gpu":
        return (
            "install the DALI wheel for the driver's CUDA and its libnpp (in the image both are "
            "there), or run with --data-backend dali-cpu"
        )
    return f"reinstall it ({_INSTALL}), or run with --data-backend pytorch"
