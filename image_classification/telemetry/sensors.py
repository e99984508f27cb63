"""Sensors, which read power, memory and more of one device, and where each rank's device is."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from image_classification.core.host import pci_bus_id
from image_classification.core.registry import Registry


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
    uuids: tuple[str, ...] = ()
    bus_id = ""
    with suppress(AttributeError):  # other vendors' builds of torch
        bus_id = pci_bus_id(properties)
        uuids = (f"MIG-{properties.uuid}", f"GPU-{properties.uuid}")
        # A process can use only one MIG slice, and torch may report the id of the whole GPU.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if first.startswith("MIG-"):
            uuids = (first, *uuids)
    return RankLocation(node, pid, cpus, str(properties.name), uuids, bus_id)


def _node() -> str:
    # Containers on one machine number their processes separately.
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace}"


@dataclass(frozen=True)
class Reading:
    """One sample of one device; None: not measured.

    energy_j: a counter that only grows, from an arbitrary start. utilization: a fraction of 1,
    since the last reading or over the driver's own period. throttle_reasons: names, may be empty.
    """

    power_w: float | None = None
    energy_j: float | None = None
    memory_bytes: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


FIELDS = tuple(field.name for field in fields(Reading))


class ReadingFailedError(Exception):
    """One reading failed; the next may succeed."""


class DeviceLostError(Exception):
    """The device or its driver stopped responding for good."""


class Sensor:
    """Reads one device; this base class reads nothing.

    name: of the device. source: where the readings come from. missing: field of `Reading` -> why it
    is not measured; may grow with each reading. expected: whether to warn if the device cannot be
    read.
    """

    source = ""
    expected = False

    def __init__(self, name: str, missing: dict[str, str]) -> None:
        self.name = name
        self.missing = missing

    def read(self) -> Reading:
        """Return the device's present state.

        Raises:
            ReadingFailedError: this reading failed. DeviceLostError: all later ones would, too.
        """
        return Reading()

    def close(self) -> None:
        """Release the driver."""


def missing_sensor(name: str, why: str, expected: bool = True) -> Sensor:
    """Return the sensor of a device that cannot be read. why: the reason, for every field."""
    sensor = Sensor(name, dict.fromkeys(FIELDS, why))
    sensor.expected = expected
    return sensor


SENSORS: Registry[Callable[[Sequence[RankLocation]], Sequence[Sensor]]] = Registry("kind of sensor")
SENSORS.add("cuda", "image_classification.telemetry.nvml:open_sensors")
SENSORS.add("cpu", "image_classification.telemetry.cpu:open_sensors")


def open_sensors(kind: str, locations: Sequence[RankLocation]) -> Sequence[Sensor]:
    """Return the sensors of one node. kind: of device (``cuda``, ``cpu``). locations: its ranks."""
    expected = kind in SENSORS
    why = f"no sensors for {kind} devices in this release"
    if expected:
        try:
            return SENSORS.get(kind)(locations)
        except Exception as error:  # a measurement that fails must not stop training
            why = f"{type(error).__name__}: {error}"
    return [missing_sensor(location.device_name, why, expected) for location in locations]
