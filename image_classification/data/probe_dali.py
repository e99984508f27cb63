"""Checks of NVIDIA DALI: whether it is there, which CUDA it is built with, whether it decodes.

`decode` runs in a process of its own, since a library that does not fit the machine can crash.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from image_classification.core.checkup import Check, fail, ok, skipped

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
