"""NVIDIA GPUs through torch.cuda, and the CPU cores that the process of each GPU runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from image_classification.config.schema import GPU_AFFINITY_MODES
from image_classification.core.errors import ConfigError, DeviceError, unknown
from image_classification.core.host import driver_version, nvml, parse_cpu_list, pci_bus_id
from image_classification.core.types import DevicesFound
from image_classification.devices.accelerator import Accelerator
from image_classification.devices.capabilities import build_lacks, cuda_lacks, tf32_conflict


class CudaAccelerator(Accelerator):
    """One process per GPU; ``cuda:N`` counts the visible devices (``CUDA_VISIBLE_DEVICES``)."""

    kind = "cuda"
    process_group_backend = "nccl"

    def found(self) -> DevicesFound:
        """Return the visible GPUs; none without a GPU, a driver or a CUDA build of torch."""
        indices = range(torch.cuda.device_count())
        return DevicesFound(
            "cuda",
            tuple(torch.cuda.get_device_name(i) for i in indices),
            tuple("{}.{}".format(*torch.cuda.get_device_capability(i)) for i in indices),
        )

    def device(self, local_rank: int) -> torch.device:
        """Make GPU ``local_rank`` current, enable cuDNN's benchmark mode, and return the device.

        Raises:
            DeviceError: there is no such GPU, or this torch has no kernels for it.
        """
        count = torch.cuda.device_count()
        if count == 0:
            raise DeviceError(
                "no NVIDIA GPU is usable here; check nvidia-smi (in a container: --gpus all), or "
                "use --platform CPU, or --set platform.device=cpu to run this platform's "
                "configuration anyway"
            )
        if local_rank >= count:
            raise DeviceError(
                f"process {local_rank} of this node has no GPU: {count} visible; start {count} "
                "processes per node, or let each process see all GPUs (Slurm: --gpu-bind=none)"
            )
        message = build_lacks(
            torch.cuda.get_device_capability(local_rank),
            torch.cuda.get_arch_list(),
            torch.cuda.get_device_name(local_rank),
            torch.__version__,
        )
        if message is not None:
            raise DeviceError(message)
        torch.cuda.set_device(local_rank)
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda", local_rank)

    def check_precision(self, name: str, dtype: str) -> None:
        """Raise DeviceError if the current device lacks ``dtype`` (or TF32) in hardware.

        Emulation does not count. An environment variable that overrides TF32 is refused as well.
        """
        message = cuda_lacks(
            name, dtype, torch.cuda.get_device_capability(), torch.cuda.get_device_name()
        ) or tf32_conflict(name, os.environ)
        if message is not None:
            raise DeviceError(message)

    def set_matmul_precision(self, name: str) -> None:
        """Set float32 matrix products and convolutions: 'tf32' for TF32, 'ieee' otherwise.

        Both explicitly, since cuDNN's default is TF32, in NGC images that of cuBLAS as well.
        ``set_float32_matmul_precision`` comes first: Inductor reads torch's legacy state, and
        raises if only the per-backend setting was changed.
        """
        precision = "tf32" if name == "TF32" else "ieee"
        torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        """Wait for all work queued on the current device."""
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        """Record an event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        return event

    def elapsed_s(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two marks, by the GPU's clock; waits for the later one."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000.0  # type: ignore[no-untyped-call]

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of tensors on the current device, without caches and context."""
        return torch.cuda.max_memory_allocated()

    def free_memory_bytes(self) -> int | None:
        """Return the free memory of the current GPU."""
        return torch.cuda.mem_get_info()[0]

    @contextmanager
    def memory_limit(self, num_bytes: int) -> Iterator[None]:
        """Limit the memory of tensors and caches on the current GPU; see `Accelerator`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        total_bytes = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total_bytes))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def environment(self) -> dict[str, Any]:
        """Return versions of CUDA, cuDNN and the driver, and the names of the devices."""
        version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {
            "cuda": torch.version.cuda,
            "cudnn": cudnn_name(version),
            "driver": driver_version(),
            "devices": list(self.found().names),
        }


def cudnn_name(version: int | None) -> str | None:
    """Format cuDNN's version number: 91002 is 9.10.2, 8902 is 8.9.2; None stays None."""
    if version is None:
        return None
    base = 10_000 if version >= 90_000 else 1_000
    return f"{version // base}.{version % base // 100}.{version % 100}"


Core = tuple[int, ...]
"""A physical core: its logical CPUs, sorted."""

_REMEDY = "use --gpu-affinity none, or let the job use more cores (Docker --cpuset-cpus, srun -c)"


def set_affinity(mode: str, device_index: int, local_world_size: int) -> set[int]:
    """Bind this process to CPU cores near GPU ``device_index``; return its logical CPUs.

    Call it once, before loader processes start: they inherit the binding. Every process of the
    node computes the same partition over GPUs 0 to ``local_world_size`` - 1 and takes its part.

    Raises:
        DeviceError: NVML or the GPUs are missing, or the cores cannot be divided.
        ConfigError: there is no such mode.
    """
    if mode not in GPU_AFFINITY_MODES:
        raise ConfigError(unknown("gpu_affinity", mode, GPU_AFFINITY_MODES))
    if mode == "none":
        return os.sched_getaffinity(0)
    with nvml() as lib:
        if lib is None or torch.cuda.device_count() < local_world_size:
            raise DeviceError(
                f"gpu_affinity {mode} needs {local_world_size} GPUs and NVIDIA's driver, which "
                "tells the CPU cores near each GPU; use --gpu-affinity none"
            )
        allowed = os.sched_getaffinity(0)
        try:
            near = [_near_cpus(lib, i) & allowed for i in range(local_world_size)]
        except lib.NVMLError as error:
            raise DeviceError(
                f"the NVIDIA driver does not tell which CPU cores are near each GPU ({error}); "
                "use --gpu-affinity none"
            ) from error
    os.sched_setaffinity(0, partition(mode, near, read_siblings())[device_index])
    return os.sched_getaffinity(0)


def _near_cpus(lib: ModuleType, device_index: int) -> set[int]:
    """Return the CPUs of the socket of a GPU, by torch's index among the visible ones."""
    bus_id = pci_bus_id(torch.cuda.get_device_properties(device_index))
    handle = lib.nvmlDeviceGetHandleByPciBusId(bus_id)
    num_words = (os.sysconf("SC_NPROCESSORS_CONF") + 63) // 64
    words = lib.nvmlDeviceGetCpuAffinity(handle, num_words)
    # 64-bit words; CPU 0 is the lowest bit of the first.
    return {64 * w + b for w, word in enumerate(words) for b in range(64) if word >> b & 1}


def read_siblings(root: Path = Path("/sys/devices/system/cpu")) -> dict[int, Core]:
    """Return, for each logical CPU, all logical CPUs of its physical core."""
    siblings: dict[int, Core] = {}
    for file in root.glob("cpu[0-9]*/topology/thread_siblings_list"):
        core = tuple(sorted(parse_cpu_list(file.read_text())))
        siblings.update(dict.fromkeys(core, core))
    return siblings


def partition(
    mode: str, cpus_by_device: Sequence[set[int]], siblings: Mapping[int, Core]
) -> list[set[int]]:
    """Return the logical CPUs of each device's process.

    The modes and their arithmetic are those of ``gpu_affinity`` in NVIDIA DeepLearningExamples
    ConvNets: cores are assigned whole, with both hyper-threads, and in the ``unique`` modes every
    process gets the same number. ``socket``: all cores; ``socket_single``: the first core;
    ``socket_single_unique``: the first core that no earlier device has;
    ``socket_unique_interleaved`` and ``_continuous``: an equal share of the cores, interleaved or
    contiguous.

    cpus_by_device: for each device, the CPUs of its socket that this job may use. siblings: from
    `read_siblings`; a CPU that it lacks is a core of its own.

    Raises:
        DeviceError: there are too few cores, or the sockets overlap without being equal.
    """
    for i, cpus in enumerate(cpus_by_device):
        if not cpus:
            raise DeviceError(f"this job may use none of the CPU cores near GPU {i}; {_REMEDY}")
        for j, others in enumerate(cpus_by_device[:i]):
            if cpus != others and cpus & others:
                raise DeviceError(
                    f"the CPU cores near GPU {j} and GPU {i} overlap without being the same, so "
                    f"they cannot be divided; {_REMEDY}"
                )
    cores = [_physical_cores(cpus, siblings) for cpus in cpus_by_device]
    if mode == "socket":
        chosen = cores
    elif mode == "socket_single":
        chosen = [near[:1] for near in cores]
    elif mode == "socket_single_unique":
        chosen = _single_unique(cores)
    else:
        chosen = _unique(cores, interleaved=mode == "socket_unique_interleaved")
    return [{cpu for core in device for cpu in core} for device in chosen]


def _physical_cores(cpus: set[int], siblings: Mapping[int, Core]) -> tuple[Core, ...]:
    """Group logical CPUs by physical core, sorted; without siblings that are not in ``cpus``."""
    by_core: dict[Core, list[int]] = {}
    for cpu in sorted(cpus):
        by_core.setdefault(siblings.get(cpu, (cpu,)), []).append(cpu)
    return tuple(tuple(by_core[core]) for core in sorted(by_core))


def _single_unique(cores: Sequence[tuple[Core, ...]]) -> list[tuple[Core, ...]]:
    chosen: list[tuple[Core, ...]] = []
    for device, near in enumerate(cores):
        free = next((core for core in near if (core,) not in chosen), None)
        if free is None:
            raise DeviceError(f"no CPU core near GPU {device} is left for its process; {_REMEDY}")
        chosen.append((free,))
    return chosen


def _unique(cores: Sequence[tuple[Core, ...]], interleaved: bool) -> list[tuple[Core, ...]]:
    devices_of: dict[tuple[Core, ...], list[int]] = {}
    for device, near in enumerate(cores):
        devices_of.setdefault(near, []).append(device)
    share = min(len(socket) // len(devices) for socket, devices in devices_of.items())
    if share == 0:
        raise DeviceError(f"there are fewer CPU cores near the GPUs than GPUs; {_REMEDY}")
    chosen: list[tuple[Core, ...]] = [()] * len(cores)
    for socket, devices in devices_of.items():
        used = socket[: share * len(devices)]
        for i, device in enumerate(devices):
            contiguous = used[i * share : (i + 1) * share]
            chosen[device] = used[i :: len(devices)] if interleaved else contiguous
    return chosen
