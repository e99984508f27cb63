"""Where each rank of a run is: node, process, CPUs and device."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from image_classification.core.nvml import pci_bus_id


@dataclass(frozen=True)
class RankLocation:
    """Location of one rank, as ranks exchange it.

    node: equal for ranks that see each other's processes. uuids: as NVML writes them (``GPU-…``,
    ``MIG-…``), in the order they are tried; empty on a CPU, or if unknown. bus_id: PCI bus id such
    as ``00000000:3B:00.0``.
    """

    node: str
    pid: int
    cpus: tuple[int, ...] = ()
    device_name: str = ""
    uuids: tuple[str, ...] = ()
    bus_id: str = ""

    def to_text(self) -> str:
        """Return the location as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> RankLocation:
        """Parse the output of `to_text`."""
        values = json.loads(text)
        values |= {key: tuple(values[key]) for key in ("cpus", "uuids")}
        return RankLocation(**values)


def own_location(device: torch.device, name: str) -> RankLocation:
    """Return this process's location. name: the device's name."""
    node, pid, cpus = _node(), os.getpid(), tuple(sorted(os.sched_getaffinity(0)))
    if device.type != "cuda":
        return RankLocation(node, pid, cpus, name)
    properties: Any = torch.cuda.get_device_properties(device)
    try:
        uuids, bus_id = cuda_ids(properties, os.environ)
    except AttributeError:  # other vendors' builds of torch
        uuids, bus_id = (), ""
    return RankLocation(node, pid, cpus, str(properties.name), uuids, bus_id)


def cuda_ids(properties: Any, environ: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Return UUIDs and PCI bus id of a CUDA device. Its index depends on the environment.

    properties: from `torch.cuda.get_device_properties`. The UUID of a MIG slice comes first: a
    process can use only one, and torch may report the id of the whole GPU.
    """
    uuid = str(properties.uuid)
    first = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    slices = (first,) if first.startswith("MIG-") else ()
    return (*slices, f"MIG-{uuid}", f"GPU-{uuid}"), pci_bus_id(properties)


def _node() -> str:
    # Containers on one machine number their processes separately.
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"
