"""Which CPU cores the process of each GPU runs on.

The modes and their arithmetic are those of ``gpu_affinity`` in NVIDIA DeepLearningExamples
ConvNets: cores are assigned whole, with both hyper-threads, and in the ``unique`` modes every
process gets the same number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType

import torch

from image_classification.config.schema import GPU_AFFINITY_MODES
from image_classification.core.errors import ConfigError, DeviceError, unknown
from image_classification.core.host import parse_cpu_list
from image_classification.core.nvml import nvml, pci_bus_id

Core = tuple[int, ...]
"""A physical core: its logical CPUs, sorted."""

_REMEDY = "use --gpu-affinity none, or let the job use more cores (Docker --cpuset-cpus, srun -c)"


def read_siblings(root: Path = Path("/sys/devices/system/cpu")) -> dict[int, Core]:
    """Return, for each logical CPU, all logical CPUs of its physical core."""
    siblings: dict[int, Core] = {}
    for file in root.glob("cpu[0-9]*/topology/thread_siblings_list"):
        core = tuple(sorted(parse_cpu_list(file.read_text())))
        siblings.update(dict.fromkeys(core, core))
    return siblings


def cpus_of_mask(words: Iterable[int]) -> set[int]:
    """Return the CPUs in NVML's mask: 64-bit words, CPU 0 is the lowest bit of the first."""
    return {64 * w + b for w, word in enumerate(words) for b in range(64) if word >> b & 1}


def physical_cores(cpus: AbstractSet[int], siblings: Mapping[int, Core]) -> tuple[Core, ...]:
    """Group logical CPUs by physical core, sorted; without siblings that are not in ``cpus``."""
    by_core: dict[Core, list[int]] = {}
    for cpu in sorted(cpus):
        by_core.setdefault(siblings.get(cpu, (cpu,)), []).append(cpu)
    return tuple(tuple(by_core[core]) for core in sorted(by_core))


def partition(
    mode: str, cpus_by_device: Sequence[AbstractSet[int]], siblings: Mapping[int, Core]
) -> list[set[int]]:
    """Return the logical CPUs of each device's process.

    cpus_by_device: for each device, the CPUs of its socket that this job may use. siblings: from
    `read_siblings`. Modes: ``socket``, all of them; ``socket_single``, the first core;
    ``socket_single_unique``, the first core that no earlier device has;
    ``socket_unique_interleaved`` and ``_continuous``, an equal share of the cores, interleaved or
    contiguous.

    Raises:
        DeviceError: there are too few cores, or the sockets overlap without being equal.
        ConfigError: there is no such mode.
    """
    cores = [physical_cores(cpus, siblings) for cpus in cpus_by_device]
    _check_sockets(cpus_by_device)
    if mode == "socket":
        chosen = cores
    elif mode == "socket_single":
        chosen = [c[:1] for c in cores]
    elif mode == "socket_single_unique":
        chosen = _single_unique(cores)
    elif mode in ("socket_unique_interleaved", "socket_unique_continuous"):
        chosen = _unique(cores, interleaved=mode.endswith("interleaved"))
    else:
        raise ConfigError(unknown("gpu_affinity", mode, GPU_AFFINITY_MODES))
    return [{cpu for core in device for cpu in core} for device in chosen]


def _check_sockets(cpus_by_device: Sequence[AbstractSet[int]]) -> None:
    for i, cpus in enumerate(cpus_by_device):
        if not cpus:
            raise DeviceError(f"this job may use none of the CPU cores near GPU {i}; {_REMEDY}")
        for j, others in enumerate(cpus_by_device[:i]):
            if cpus != others and cpus & others:
                raise DeviceError(
                    f"the CPU cores near GPU {j} and GPU {i} overlap without being the same, so "
                    f"they cannot be divided; {_REMEDY}"
                )


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


def _near_cpus(lib: ModuleType, device_index: int) -> set[int]:
    """Return the CPUs of the socket of a GPU, by torch's index among the visible ones."""
    bus_id = pci_bus_id(torch.cuda.get_device_properties(device_index))
    handle = lib.nvmlDeviceGetHandleByPciBusId(bus_id)
    words = (os.sysconf("SC_NPROCESSORS_CONF") + 63) // 64
    return cpus_of_mask(lib.nvmlDeviceGetCpuAffinity(handle, words))


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
