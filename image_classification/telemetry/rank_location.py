"""Where each rank of a run is: machine, process, cores and device, as text other ranks can read."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """One rank's place. device ids in the order they are tried; empty for a CPU, or unknown.

    node: equal for ranks that see one another's processes. uuids: NVML's writing (``GPU-…``,
    ``MIG-…``). bus_id: ``00000000:3B:00.0``.
    """

    node: str
    pid: int
    cpus: tuple[int, ...] = ()
    device_name: str = ""
    uuids: tuple[str, ...] = ()
    bus_id: str = ""

    def to_text(self) -> str:
        """Write the place as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Place:
        """Read what `to_text` wrote."""
        values = json.loads(text)
        return Place(**{**values, "cpus": tuple(values["cpus"]), "uuids": tuple(values["uuids"])})


def own_place(device: torch.device, name: str) -> Place:
    """Return this process's place; name: its device's."""
    node, pid, cpus = _node(), os.getpid(), _cpus()
    if device.type != "cuda":
        return Place(node, pid, cpus, name)
    properties: Any = torch.cuda.get_device_properties(device)
    try:
        uuids, bus_id = cuda_ids(properties, os.environ)
    except AttributeError:  # a vendor's own build of torch
        uuids, bus_id = (), ""
    return Place(node, pid, cpus, str(properties.name), uuids, bus_id)


def cuda_ids(properties: Any, environ: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Return UUIDs and bus id of a CUDA device; never its index, which the environment renumbers.

    properties: of `torch.cuda.get_device_properties`. A slice of a GPU (MIG) comes first: a
    process can use no more than one, and torch may know it by its GPU's id.
    """
    uuid = str(properties.uuid)
    first = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    slices = (first,) if first.startswith("MIG-") else ()
    bus_id = (
        f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}"
        f":{properties.pci_device_id:02X}.0"
    )
    return (*slices, f"MIG-{uuid}", f"GPU-{uuid}"), bus_id


def _node() -> str:
    # Containers on one machine have process numbers of their own.
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


def _cpus() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
