"""Checks of Python, its packages, and what a run does with them: decode and sum over processes."""

from __future__ import annotations

import importlib
import io
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from image_classification.doctor.gpu import check_driver_runs_cuda
from image_classification.doctor.probe import ProbeError, call_together, one_line
from image_classification.doctor.report import CheckResult, fail, ok, skipped, warn

if TYPE_CHECKING:
    import torch

    from image_classification.doctor.checks import Context

_MIN_PYTHON = (3, 10)
# Older releases run code from a checkpoint file even with weights_only (CVE-2025-32434 and
# CVE-2026-24747).
_MIN_TORCH = (2, 10)
_VISION_MODULES = ("torchvision.io", "torchvision.transforms.v2", "PIL")
_TORCH_REMEDY = "pip install torch and torchvision together, from one index, in the pinned versions"


def check_python(context: Context) -> Iterator[CheckResult]:
    """Judge the interpreter's version."""
    found = sys.version.split()[0]
    if sys.version_info >= _MIN_PYTHON:
        yield ok("python", found)
    else:
        yield fail("python", found, "install Python 3.10 or newer")


def check_torch(context: Context) -> Iterator[CheckResult]:
    """Yield torch, torchvision, pillow."""
    try:
        versions = context.probe(import_versions)
    except ProbeError as error:
        yield fail("torch", f"cannot be imported: {error}", _TORCH_REMEDY)
        return
    torch, vision = versions["torch"], versions["torchvision"]
    if tuple(int(number) for number in re.findall(r"\d+", torch)[:2]) < _MIN_TORCH:
        found = f"{torch} runs code from other people's .pth files"
        yield fail("torch", found, "install torch {}.{} or newer".format(*_MIN_TORCH))
    else:
        yield ok("torch", torch)
    torch_release, _, torch_build = torch.partition("+")
    wanted, build = torchvision_wants(), vision.partition("+")[2]
    problem = ""
    if wanted is not None and torch_release != wanted:
        problem = f"{vision} requires torch {wanted}, not {torch_release}"
    elif build and torch_build and build != torch_build:
        problem = f"{vision} and torch {torch} are different builds"
    yield fail("torchvision", problem, _TORCH_REMEDY) if problem else ok("torchvision", vision)
    yield ok("pillow", versions["pillow"])


def import_versions() -> dict[str, str]:
    """Probe: import torch, torchvision and Pillow; return their versions.

    Raises:
        ImportError: one of them, or a compiled part, cannot be imported; with the reason.
    """
    module = ""
    try:
        for module in ("torch", "torch.distributed", *_VISION_MODULES):
            importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        raise ImportError(f"{module}: {one_line(error)}") from error
    packages = {"torch": "torch", "torchvision": "torchvision", "pillow": "PIL"}
    return {name: str(sys.modules[module].__version__) for name, module in packages.items()}


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


def check_nvml_package(context: Context) -> Iterator[CheckResult]:
    """Warn of the deprecated package ``pynvml``, whose module has the same name."""
    name = "nvidia-ml-py"
    old, installed = _version("pynvml"), _version(name)
    if old is not None:
        remedy = "pip uninstall -y pynvml; pip install --force-reinstall nvidia-ml-py"
        yield warn(name, f"the deprecated package pynvml {old} is installed as well", remedy)
    elif installed is None:
        found = "not installed: driver and GPU memory are not checked"
        yield warn(name, found, f"pip install {name}")
    else:
        yield ok(name, installed)


def check_apex(context: Context) -> Iterator[CheckResult]:
    """Describe what of NVIDIA Apex is installed, and whether it can be imported."""
    try:
        yield context.probe(import_apex)
    except ProbeError as error:
        yield _broken_apex("Apex", str(error))


def import_apex() -> CheckResult:
    """Probe: find Apex and, if this project could use it, import it."""
    from image_classification.engine.precision import find_apex

    apex = find_apex()
    if apex is None:
        why = "not installed; only amp_backend or implementation apex needs it"
        return skipped("apex", why)
    if not (apex.is_nvidia and apex.has_kernels):
        why = f"{apex.describe()}: amp_backend and implementation apex are refused"
        return skipped("apex", why)
    try:
        for module in ("torch", "amp_C", "apex.optimizers"):
            importlib.import_module(module)
    except Exception as error:  # for example built for another torch
        return _broken_apex(apex.describe(), one_line(error))
    return ok("apex", apex.describe())


def _broken_apex(apex: str, error: str) -> CheckResult:
    remedy = "build Apex for this torch, or leave amp_backend and implementation at torch"
    return warn("apex", f"{apex} cannot be imported: {error}", remedy)


# Both provide the same module, so only one may be installed.
_DALI_WHEELS = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
_INSTALL_DALI = "pip install 'imagenet-by-name[dali]'"
_DALI_REMEDIES = {
    "dali-cpu": f"reinstall it ({_INSTALL_DALI}), or run with --data-backend pytorch",
    "dali-gpu": "install the DALI wheel for the driver's CUDA and its libnpp (the image has both), "
    "or run with --data-backend dali-cpu",
}
_WIDTH_PX, _HEIGHT_PX = 96, 64
_MAX_MEAN_DIFFERENCE = 4.0


def check_dali(context: Context) -> Iterator[CheckResult]:
    """Yield dali, dali-cpu, dali-gpu, dali-cuda."""
    wheels = [f"{name} {found}" for name in _DALI_WHEELS if (found := _version(name)) is not None]
    if len(wheels) > 1:
        found = f"{' and '.join(wheels)} are both installed and provide the same module"
        remedy = f"pip uninstall -y {' '.join(_DALI_WHEELS)}, then {_INSTALL_DALI}"
        yield fail("dali", found, remedy)
    elif wheels:
        yield ok("dali", wheels[0])
    elif context.needs.backend.startswith("dali-"):
        remedy = f"{_INSTALL_DALI}, or run with --data-backend pytorch"
        yield fail("dali", "not installed; this platform's data backend is DALI's", remedy)
    else:
        why = "not installed; only the dali-cpu and dali-gpu data backends need it"
        yield skipped("dali", why)
    if not wheels:
        return
    for name, on_gpu in (("dali-cpu", False), ("dali-gpu", True)):
        if on_gpu and not context.num_gpus:
            yield skipped(name, "no GPU to decode on")
            continue
        remedy = _DALI_REMEDIES[name]
        try:
            number, cuda, problem = context.probe(decode_with_dali, on_gpu)
        except ProbeError as error:
            yield fail(name, f"DALI did not decode: {error}", remedy)
            continue
        found = f"DALI {number} (CUDA {cuda[0]}.{cuda[1]}) decoded a JPEG of "
        found += f"{_WIDTH_PX} x {_HEIGHT_PX}"
        yield fail(name, found + problem, remedy) if problem else ok(name, found)
        if on_gpu and context.driver.version:
            yield check_driver_runs_cuda("dali-cuda", cuda, context.driver, True, "DALI")


def decode_with_dali(on_gpu: bool) -> tuple[str, tuple[int, int], str]:
    """Probe: decode a small JPEG with a DALI pipeline, on the CPU or mixed on GPU 0.

    Returns DALI's version, the CUDA release that it is built with, and the difference from
    Pillow's image if it is too large, else "".
    """
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
    has_shape = image.shape == expected.shape
    difference = float(np.abs(image - expected).mean()) if has_shape else float("inf")
    problem = ""
    if difference > _MAX_MEAN_DIFFERENCE:
        problem = f" to {image.shape}, with a mean difference of {difference:.3g} from Pillow's "
        problem += "pixels"
    number = int(dali.__cuda_version__)
    return dali.__version__, (number // 1000, number % 1000 // 100), problem


_SUM_BYTES = 64 * 2**20
_SUM_REPEATS = 5
_SUM_TIMEOUT_S = 30.0
_MIN_NCCL_MB_PER_S = 1000.0
_NO_SUM_REMEDIES = {
    "gloo": "set GLOO_SOCKET_IFNAME to a network interface (lo on one machine), and make sure that "
    "the name of this host resolves (/etc/hosts)",
    "nccl": "run with NCCL_DEBUG=INFO to see why; give the container shared memory (--ipc=host) "
    "and --ulimit memlock=-1, or try NCCL_P2P_DISABLE=1",
}


def check_gloo(context: Context) -> Iterator[CheckResult]:
    """Sum over two processes on the CPU."""
    yield _run_all_reduce("gloo", 2, "processes on the CPU", context.limit_s)


def check_nccl(context: Context) -> Iterator[CheckResult]:
    """Sum over all GPUs."""
    if context.num_gpus < 2:
        yield skipped("nccl", f"needs 2 GPUs or more, here: {context.num_gpus}")
    else:
        yield _run_all_reduce("nccl", context.num_gpus, "GPUs", context.limit_s)


def _run_all_reduce(backend: str, count: int, devices: str, limit_s: float) -> CheckResult:
    with tempfile.TemporaryDirectory(prefix="image-classification-") as folder:
        arguments = [(rank, count, backend, f"{folder}/store") for rank in range(count)]
        try:
            measured = call_together(all_reduce, arguments, limit_s)
        except ProbeError as error:
            return fail(backend, f"{count} {devices}: {error}", _NO_SUM_REMEDIES[backend])
    return judge_all_reduce(backend, devices, measured)


def judge_all_reduce(
    backend: str, devices: str, measured: Sequence[tuple[float, float, bool]]
) -> CheckResult:
    """Judge the results of `all_reduce` of all ranks by the slowest."""
    small_s = max(rank[0] for rank in measured)
    large_s = max(rank[1] for rank in measured)
    mb_per_s = _SUM_BYTES / large_s / 1e6
    found = (
        f"all_reduce over {len(measured)} {devices}: 4 bytes {1000 * small_s:.2f} ms, "
        f"{_SUM_BYTES / 2**20:g} MiB {1000 * large_s:.1f} ms, {mb_per_s:,.0f} MB/s"
    )
    if not all(is_correct for _, _, is_correct in measured):
        return fail(backend, f"{found}, and the sum is wrong", _NO_SUM_REMEDIES[backend])
    if backend == "nccl" and mb_per_s < _MIN_NCCL_MB_PER_S:
        remedy = (
            "see how the GPUs are connected (nvidia-smi topo -m) and which path NCCL uses "
            "(NCCL_DEBUG=INFO); give the container shared memory (--ipc=host)"
        )
        return warn(backend, found, remedy)
    return ok(backend, found)


def all_reduce(
    rank: int, world_size: int, backend: str, store_file: str
) -> tuple[float, float, bool]:
    """Probe: sum tensors over ``world_size`` processes; with NCCL, rank N uses GPU N.

    Returns the median seconds for 4 bytes and for 64 MiB, and whether the sum was correct.
    store_file: a path that all ranks share and that does not exist yet.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)

    def timed(tensor: torch.Tensor) -> float:
        dist.barrier()
        start_s = time.perf_counter()
        dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start_s

    dist.init_process_group(
        backend,
        init_method=f"file://{store_file}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=_SUM_TIMEOUT_S),
        device_id=device if backend == "nccl" else None,
    )
    try:
        small = torch.zeros(1, device=device)
        large = torch.full((_SUM_BYTES // 4,), float(rank + 1), device=device)
        timed(large)  # the first connects the processes
        is_correct = bool((large == world_size * (world_size + 1) / 2).all())
        large.zero_()
        small_s = statistics.median(timed(small) for _ in range(_SUM_REPEATS))
        large_s = statistics.median(timed(large) for _ in range(_SUM_REPEATS))
        return small_s, large_s, is_correct
    finally:
        dist.destroy_process_group()
