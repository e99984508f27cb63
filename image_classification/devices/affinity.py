"""Linux's way to write sets of logical CPUs.

Which CPU cores each GPU's process runs on: the predecessor's published modes.

The modes and their arithmetic are those of ``gpu_affinity`` in NVIDIA DeepLearningExamples
ConvNets: cores go out whole, hyper-thread siblings together, and in the ``unique`` modes every
process gets equally many.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from image_classification.core.errors import ConfigError, DeviceError, unknown
from image_classification.core.nvml import nvml


def parse_cpu_list(text: str) -> set[int]:
    """Read Linux's CPU list format: ``0-3,8`` is {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        cpus.update(range(int(low), int(high or low) + 1))
    return cpus


Core = tuple[int, ...]
"""A physical core: its logical CPUs, sorted."""

MODES = (
    "none",
    "socket",
    "socket_single",
    "socket_single_unique",
    "socket_unique_interleaved",
    "socket_unique_continuous",
)


def read_siblings(root: Path = Path("/sys/devices/system/cpu")) -> dict[int, Core]:
    """Return, for each logical CPU the system describes, all that share its physical core."""
    siblings: dict[int, Core] = {}
    for file in root.glob("cpu[0-9]*/topology/thread_siblings_list"):
        core = tuple(sorted(parse_cpu_list(file.read_text())))
        siblings.update(dict.fromkeys(core, core))
    return siblings


def cpus_of_mask(words: Iterable[int]) -> set[int]:
    """Read NVML's CPU mask: 64-bit words, CPU 0 the lowest bit of the first."""
    return {64 * w + b for w, word in enumerate(words) for b in range(64) if word >> b & 1}


def physical_cores(cpus: AbstractSet[int], siblings: Mapping[int, Core]) -> tuple[Core, ...]:
    """Group logical CPUs by physical core, ordered; siblings outside ``cpus`` are left out."""
    by_core: dict[Core, list[int]] = {}
    for cpu in sorted(cpus):
        by_core.setdefault(siblings.get(cpu, (cpu,)), []).append(cpu)
    return tuple(tuple(by_core[core]) for core in sorted(by_core))


def partition(
    mode: str, cpus_by_device: Sequence[AbstractSet[int]], siblings: Mapping[int, Core]
) -> list[set[int]]:
    """Return the logical CPUs of each device's process.

    cpus_by_device: for each device, the CPUs of its socket that this job may use. siblings: see
    `read_siblings`. Modes: ``socket``, all of them; ``socket_single``, the first core;
    ``socket_single_unique``, the first core no earlier device has; ``socket_unique_interleaved``
    and ``_continuous``, an equal share of the cores, dealt out in turn or in runs.

    Raises:
        DeviceError: there are too few cores, or the sockets overlap without being equal.
        ConfigError: no such mode.
    """
    cores = [physical_cores(cpus, siblings) for cpus in cpus_by_device]
    _check_sockets(cpus_by_device)
    if mode == "socket":
        chosen = cores
    elif mode == "socket_single":
        chosen = [c[:1] for c in cores]
    elif mode == "socket_single_unique":
        chosen = _single_unique(cores)
    elif mode == "socket_unique_interleaved":
        chosen = _unique(cores, interleaved=True)
    elif mode == "socket_unique_continuous":
        chosen = _unique(cores, interleaved=False)
    else:
        raise ConfigError(unknown("gpu_affinity", mode, MODES))
    return [{cpu for core in device for cpu in core} for device in chosen]


_REMEDY = "use --gpu-affinity none, or let the job use more cores (Docker --cpuset-cpus, srun -c)"


def _check_sockets(cpus_by_device: Sequence[AbstractSet[int]]) -> None:
    for i, cpus in enumerate(cpus_by_device):
        if not cpus:
            raise DeviceError(f"none of the CPU cores near GPU {i} is open to this job; {_REMEDY}")
        for j, others in enumerate(cpus_by_device[:i]):
            if cpus != others and cpus & others:
                raise DeviceError(
                    f"the CPU cores near GPU {j} and GPU {i} overlap without being the same, so "
                    f"they cannot be shared out; {_REMEDY}"
                )


def _single_unique(cores: Sequence[tuple[Core, ...]]) -> list[tuple[Core, ...]]:
    taken: set[Core] = set()
    chosen: list[tuple[Core, ...]] = []
    for device, mine in enumerate(cores):
        free = next((core for core in mine if core not in taken), None)
        if free is None:
            raise DeviceError(f"no CPU core near GPU {device} is left for its process; {_REMEDY}")
        taken.add(free)
        chosen.append((free,))
    return chosen


def _unique(cores: Sequence[tuple[Core, ...]], interleaved: bool) -> list[tuple[Core, ...]]:
    devices_of: dict[tuple[Core, ...], list[int]] = {}
    for device, mine in enumerate(cores):
        devices_of.setdefault(mine, []).append(device)
    share = min(len(socket) // len(devices) for socket, devices in devices_of.items())
    if share == 0:
        raise DeviceError(f"there are fewer CPU cores near the GPUs than GPUs; {_REMEDY}")
    chosen: list[tuple[Core, ...]] = [()] * len(cores)
    for socket, devices in devices_of.items():
        dealt = socket[: share * len(devices)]
        for place, device in enumerate(devices):
            chosen[device] = (
                dealt[place :: len(devices)]
                if interleaved
                else dealt[place * share : (place + 1) * share]
            )
    return chosen


def _near_cpus(lib: ModuleType, device_index: int) -> set[int]:
    """Return the CPUs of the visible GPU's socket; torch's order, whatever is hidden or renamed."""
    props: Any = torch.cuda.get_device_properties(device_index)
    bus_id = f"{props.pci_domain_id:08X}:{props.pci_bus_id:02X}:{props.pci_device_id:02X}.0"
    words = (os.sysconf("SC_NPROCESSORS_CONF") + 63) // 64
    handle = lib.nvmlDeviceGetHandleByPciBusId(bus_id)
    return cpus_of_mask(lib.nvmlDeviceGetCpuAffinity(handle, words))


def set_affinity(mode: str, device_index: int, local_world_size: int) -> set[int]:
    """Bind this process to CPU cores near GPU ``device_index``; return those it may now run on.

    Call it once, before loader processes start: they inherit the binding. Every process of the
    node computes the same partition over GPUs 0 to ``local_world_size`` - 1 and takes its own.

    Raises:
        DeviceError: NVML or the GPUs are absent, or the cores cannot be shared out so.
        ConfigError: no such mode.
    """
    if mode not in MODES:
        raise ConfigError(unknown("gpu_affinity", mode, MODES))
    if mode == "none":
        return os.sched_getaffinity(0)
    if not 0 <= device_index < local_world_size:
        raise ValueError(f"device {device_index} is not among {local_world_size}")
    with nvml() as lib:
        if lib is None or torch.cuda.device_count() < local_world_size:
            raise DeviceError(
                f"gpu_affinity {mode} asks NVIDIA's driver which CPU cores are near each of "
                f"{local_world_size} GPUs, but it or they are not there; use --gpu-affinity none"
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
