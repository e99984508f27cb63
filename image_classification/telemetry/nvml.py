"""NVIDIA GPUs as sensors, found by UUID or PCI bus id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from image_classification.core.nvml import open_nvml
from image_classification.telemetry.rank_location import Place
from image_classification.telemetry.sensors import (
    FIELDS,
    LostError,
    MissedError,
    NoSensor,
    Reading,
    Sensor,
)

# nvml.h, nvmlClocksEventReasons: what holds the clocks back. Idle and clocks a person set do not.
THROTTLE_REASONS = {
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "sw_thermal",
    0x0000000000000040: "hw_thermal",
    0x0000000000000080: "hw_power_brake",
}

# By the exceptions' names: pynvml is imported where there is need of it only.
_NEVER_THIS_FIELD = (
    "NVMLError_NotSupported",
    "NVMLError_NoPermission",
    "NVMLError_FunctionNotFound",
    "NVMLError_InvalidArgument",
    "NVMLError_ArgumentVersionMismatch",
    "NVMLError_Deprecated",
)
_NEVER_THIS_DEVICE = (
    "NVMLError_GpuIsLost",
    "NVMLError_GpuNotFound",
    "NVMLError_NotFound",
    "NVMLError_ResetRequired",
    "NVMLError_Uninitialized",
    "NVMLError_DriverNotLoaded",
    "NVMLError_LibraryNotFound",
    "NVMLError_LibRmVersionMismatch",
)
_ON_A_SLICE = ("memory_bytes", "temperature_c")
_WHY_SLICE = "MIG: the driver measures it for the whole GPU only"


def _throttle_reasons(lib: ModuleType, handle: Any) -> tuple[str, ...]:
    # The old name of nvmlDeviceGetCurrentClocksEventReasons, which every driver knows.
    mask = int(lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return tuple(name for bit, name in THROTTLE_REASONS.items() if mask & bit)


_QUERIES: dict[str, Callable[[ModuleType, Any], Any]] = {
    # Milliwatts and millijoules.
    "power_w": lambda lib, h: lib.nvmlDeviceGetPowerUsage(h) / 1000,
    "energy_j": lambda lib, h: lib.nvmlDeviceGetTotalEnergyConsumption(h) / 1000,
    "memory_bytes": lambda lib, h: int(lib.nvmlDeviceGetMemoryInfo(h).used),
    "utilization": lambda lib, h: lib.nvmlDeviceGetUtilizationRates(h).gpu / 100,
    "temperature_c": lambda lib, h: lib.nvmlDeviceGetTemperature(h, lib.NVML_TEMPERATURE_GPU),
    "clock_mhz": lambda lib, h: lib.nvmlDeviceGetClockInfo(h, lib.NVML_CLOCK_SM),
    "throttle_reasons": _throttle_reasons,
}


class NvmlSensor:
    """One GPU, or one MIG slice of it."""

    source = "NVML"
    expected = True

    def __init__(self, lib: ModuleType, handle: Any, name: str, is_slice: bool) -> None:
        self.name = name
        self.missing = (
            {field: _WHY_SLICE for field in FIELDS if field not in _ON_A_SLICE} if is_slice else {}
        )
        self._lib = lib
        self._handle = handle

    def read(self) -> Reading:
        """Ask for every field that has not been refused before.

        Raises:
            MissedError: a passing error. LostError: the GPU or the driver is gone.
        """
        found: dict[str, Any] = {}
        for field, query in _QUERIES.items():
            if field in self.missing:
                continue
            try:
                found[field] = query(self._lib, self._handle)
            except self._lib.NVMLError as error:
                kind, text = type(error).__name__, f"NVML: {error}"
                if kind in _NEVER_THIS_FIELD:
                    self.missing[field] = text
                elif kind in _NEVER_THIS_DEVICE:
                    raise LostError(text) from error
                else:
                    raise MissedError(text) from error
        return Reading(**found)

    def close(self) -> None:
        """End this sensor's use of the library, which counts its users."""
        try:
            self._lib.nvmlShutdown()
        except self._lib.NVMLError:
            return  # the driver has gone, and its library with it


def open_sensors(places: Sequence[Place]) -> list[Sensor]:
    """Return one sensor a GPU of the node, in the order of its ranks; one rank more adds none."""
    # Without an id, each rank counts as a device of its own.
    devices = {place.uuids or place.pid: place for place in places}
    return [_open(place) for place in devices.values()]


def _open(place: Place) -> Sensor:
    # One use of the library for each, so that each can end by itself.
    lib, why = open_nvml()
    if lib is None:
        return NoSensor(place.device_name, why, expected=True)
    try:
        handle, is_slice = _find(lib, place)
    except lib.NVMLError as error:
        lib.nvmlShutdown()
        known_by = f"{place.uuids[-1]} at {place.bus_id}" if place.uuids else "a GPU without an id"
        why = f"NVML does not know {known_by}: {error}"
        return NoSensor(place.device_name, why, expected=True)
    return NvmlSensor(lib, handle, place.device_name, is_slice)


def _find(lib: ModuleType, place: Place) -> tuple[Any, bool]:
    """Return the handle, and whether it stands for less than a GPU or for more than the run's."""
    for uuid in place.uuids:
        try:
            handle = lib.nvmlDeviceGetHandleByUUID(uuid)
        except lib.NVMLError:
            continue
        return handle, uuid.startswith("MIG-") or _is_divided(lib, handle)
    handle = lib.nvmlDeviceGetHandleByPciBusId(place.bus_id)
    return handle, _is_divided(lib, handle)


def _is_divided(lib: ModuleType, handle: Any) -> bool:
    try:
        current, _pending = lib.nvmlDeviceGetMigMode(handle)
    except lib.NVMLError:  # GPUs before Ampere have no such mode
        return False
    return bool(current == lib.NVML_DEVICE_MIG_ENABLE)
