"""NVIDIA GPUs as sensors, found by UUID or PCI bus id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from image_classification.core.host import open_nvml
from image_classification.telemetry.sensors import (
    FIELDS,
    DeviceLostError,
    RankLocation,
    Reading,
    ReadingFailedError,
    Sensor,
    missing_sensor,
)

# nvml.h, nvmlClocksEventReasons: what holds the clocks back, without idle and user settings.
THROTTLE_REASONS = {
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "sw_thermal",
    0x0000000000000040: "hw_thermal",
    0x0000000000000080: "hw_power_brake",
}

# Exceptions are compared by name (without NVMLError_): pynvml is imported only on demand.
_FIELD_ERRORS = (
    *("NotSupported", "NoPermission", "FunctionNotFound"),
    *("InvalidArgument", "ArgumentVersionMismatch", "Deprecated"),
)
_DEVICE_ERRORS = (
    *("GpuIsLost", "GpuNotFound", "NotFound", "ResetRequired", "Uninitialized"),
    *("DriverNotLoaded", "LibraryNotFound", "LibRmVersionMismatch"),
)
_FIELDS_OF_A_SLICE = ("memory_bytes", "temperature_c")
_MIG_REASON = "MIG: the driver measures it for the whole GPU only"


def _throttle_reasons(lib: ModuleType, handle: Any) -> tuple[str, ...]:
    # The old name of nvmlDeviceGetCurrentClocksEventReasons, which every driver supports.
    mask = int(lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return tuple(name for bit, name in THROTTLE_REASONS.items() if mask & bit)


_QUERIES: dict[str, Callable[[ModuleType, Any], Any]] = {
    # NVML returns milliwatts and millijoules.
    "power_w": lambda lib, h: lib.nvmlDeviceGetPowerUsage(h) / 1000,
    "energy_j": lambda lib, h: lib.nvmlDeviceGetTotalEnergyConsumption(h) / 1000,
    "memory_bytes": lambda lib, h: int(lib.nvmlDeviceGetMemoryInfo(h).used),
    "utilization": lambda lib, h: lib.nvmlDeviceGetUtilizationRates(h).gpu / 100,
    "temperature_c": lambda lib, h: lib.nvmlDeviceGetTemperature(h, lib.NVML_TEMPERATURE_GPU),
    "clock_mhz": lambda lib, h: lib.nvmlDeviceGetClockInfo(h, lib.NVML_CLOCK_SM),
    "throttle_reasons": _throttle_reasons,
}


class NvmlSensor(Sensor):
    """One GPU, or one MIG slice of a GPU."""

    source = "NVML"
    expected = True

    def __init__(self, lib: ModuleType, handle: Any, name: str, is_slice: bool) -> None:
        whole_gpu_fields = [f for f in FIELDS if is_slice and f not in _FIELDS_OF_A_SLICE]
        super().__init__(name, dict.fromkeys(whole_gpu_fields, _MIG_REASON))
        self._lib = lib
        self._handle = handle

    def read(self) -> Reading:
        """Query every field that the driver has not refused before.

        Raises:
            ReadingFailedError: a transient error. DeviceLostError: the GPU or driver is gone.
        """
        values: dict[str, Any] = {}
        for field, query in _QUERIES.items():
            if field in self.missing:
                continue
            try:
                values[field] = query(self._lib, self._handle)
            except self._lib.NVMLError as error:
                kind, text = type(error).__name__.removeprefix("NVMLError_"), f"NVML: {error}"
                if kind in _FIELD_ERRORS:
                    self.missing[field] = text
                elif kind in _DEVICE_ERRORS:
                    raise DeviceLostError(text) from error
                else:
                    raise ReadingFailedError(text) from error
        return Reading(**values)

    def close(self) -> None:
        """Release the library, which counts its users."""
        with suppress(self._lib.NVMLError):  # the driver was unloaded
            self._lib.nvmlShutdown()


def open_sensors(locations: Sequence[RankLocation]) -> list[Sensor]:
    """Return one sensor per GPU of the node, in rank order; ranks may share a GPU."""
    # Without an id, each rank counts as a separate device.
    devices = {location.uuids or location.pid: location for location in locations}
    return [_open(location) for location in devices.values()]


def _open(location: RankLocation) -> Sensor:
    # Each sensor opens and closes the library by itself.
    lib, error = open_nvml()
    if lib is None:
        return missing_sensor(location.device_name, f"NVML: {error}")
    try:
        handle, is_slice = _find(lib, location)
    except lib.NVMLError as not_found:
        lib.nvmlShutdown()
        uuids = location.uuids
        gpu = f"{uuids[-1]} at {location.bus_id}" if uuids else "a GPU without an id"
        return missing_sensor(location.device_name, f"NVML does not know {gpu}: {not_found}")
    return NvmlSensor(lib, handle, location.device_name, is_slice)


def _find(lib: ModuleType, location: RankLocation) -> tuple[Any, bool]:
    """Return the device's handle, and whether it is a MIG slice or MIG divides the GPU."""
    for uuid in location.uuids:
        with suppress(lib.NVMLError):
            handle = lib.nvmlDeviceGetHandleByUUID(uuid)
            return handle, uuid.startswith("MIG-") or _has_mig(lib, handle)
    handle = lib.nvmlDeviceGetHandleByPciBusId(location.bus_id)
    return handle, _has_mig(lib, handle)


def _has_mig(lib: ModuleType, handle: Any) -> bool:
    try:
        current, _pending = lib.nvmlDeviceGetMigMode(handle)
    except lib.NVMLError:  # GPUs before Ampere do not support MIG
        return False
    return bool(current == lib.NVML_DEVICE_MIG_ENABLE)
