"""A fake NVML C library under the real ``pynvml``, with its types and exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pynvml


@dataclass
class FakeDevice:
    """One GPU, or a MIG slice (uuid ``MIG-…``).

    errors: C function, or ``*`` for all -> the error code it returns.
    """

    name: str = "Tesla V100-SXM2-16GB"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000001"
    bus_id: str = "00000000:3B:00.0"
    capability: tuple[int, int] = (7, 0)
    memory_total_bytes: int = 16 * 2**30
    power_mw: int = 250_000
    energy_mj: int = 7_000_000
    memory_used_bytes: int = 9 * 2**30
    utilization_percent: int = 97
    temperature_c: int = 61
    clock_mhz: int = 1380
    throttle: int = 0
    mig_mode: int | None = None
    cpu_affinity: tuple[int, ...] = (1,)
    errors: dict[str, int] = field(default_factory=dict)


class FakeDriver:
    """The library's functions over ``devices``; ``users`` counts init minus shutdown.

    absent: functions that this driver is too old to have. init_error: the code that ``nvmlInit``
    returns. system_error: the code that questions about the driver itself return.
    """

    def __init__(
        self,
        *devices: FakeDevice,
        init_error: int = 0,
        system_error: int = 0,
        absent: tuple[str, ...] = (),
    ) -> None:
        self.devices = devices
        self.users = 0
        self.calls: list[str] = []
        self._init_error = init_error
        self._system_error = system_error
        self._functions: dict[str, Callable[..., int]] = {
            "nvmlInitWithFlags": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlSystemGetDriverVersion": self._driver_version,
            "nvmlSystemGetCudaDriverVersion": lambda out: _set(out, 12080),
            "nvmlDeviceGetCount_v2": lambda out: _set(out, len(self.devices)),
            "nvmlDeviceGetHandleByIndex_v2": lambda index, out: _set_handle(out, index.value + 1),
            "nvmlDeviceGetName": self._name,
            "nvmlDeviceGetCudaComputeCapability": self._capability,
            "nvmlDeviceGetHandleByUUID": lambda uuid, out: self._find("uuid", uuid, out),
            "nvmlDeviceGetHandleByPciBusId_v2": lambda bus, out: self._find("bus_id", bus, out),
            "nvmlDeviceGetPowerUsage": self._number("power_mw"),
            "nvmlDeviceGetTotalEnergyConsumption": self._number("energy_mj"),
            "nvmlDeviceGetCurrentClocksThrottleReasons": self._number("throttle"),
            "nvmlDeviceGetTemperature": lambda d, kind, out: self._number("temperature_c")(d, out),
            "nvmlDeviceGetClockInfo": lambda d, kind, out: self._number("clock_mhz")(d, out),
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetUtilizationRates": self._utilization,
            "nvmlDeviceGetMigMode": self._mig_mode,
            "nvmlDeviceGetCpuAffinity": self._cpu_affinity,
        }
        for name in absent:
            del self._functions[name]

    def __getattr__(self, name: str) -> Callable[..., int]:
        functions = self.__dict__["_functions"]
        if name not in functions:
            raise AttributeError(name)  # as ctypes answers for a symbol the library lacks

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if arguments and isinstance(arguments[0], pynvml.c_nvmlDevice_t):
                device = self._of(arguments[0])
                if name in device.errors:
                    return device.errors[name]
                if "*" in device.errors:
                    return device.errors["*"]
                return int(functions[name](device, *arguments[1:]))
            return int(functions[name](*arguments))

        return call

    def _of(self, handle: Any) -> FakeDevice:
        number = ctypes.cast(handle, ctypes.c_void_p).value
        assert number is not None
        return self.devices[number - 1]

    def _init(self, flags: int) -> int:
        if not self._init_error:
            self.users += 1
        return self._init_error

    def _shutdown(self) -> int:
        self.users -= 1
        return 0

    def _find(self, key: str, value: Any, out: Any) -> int:
        for number, device in enumerate(self.devices, start=1):
            if vars(device)[key] == value.value.decode():
                return _set_handle(out, number)
        return int(pynvml.NVML_ERROR_NOT_FOUND)

    def _number(self, key: str) -> Callable[..., int]:
        return lambda device, out: _set(out, vars(device)[key])

    def _driver_version(self, out: Any, length: Any) -> int:
        out.value = b"570.124.06"
        return self._system_error

    def _name(self, device: FakeDevice, out: Any, length: Any) -> int:
        out.value = device.name.encode()
        return 0

    def _capability(self, device: FakeDevice, major: Any, minor: Any) -> int:
        return _set(major, device.capability[0]) or _set(minor, device.capability[1])

    def _memory(self, device: FakeDevice, out: Any) -> int:
        out._obj.total = device.memory_total_bytes
        out._obj.used = device.memory_used_bytes
        out._obj.free = device.memory_total_bytes - device.memory_used_bytes
        return 0

    def _utilization(self, device: FakeDevice, out: Any) -> int:
        out._obj.gpu = device.utilization_percent
        return 0

    def _mig_mode(self, device: FakeDevice, current: Any, pending: Any) -> int:
        if device.mig_mode is None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return _set(current, device.mig_mode) or _set(pending, device.mig_mode)

    def _cpu_affinity(self, device: FakeDevice, num_words: Any, out: Any) -> int:
        out._obj[: len(device.cpu_affinity)] = device.cpu_affinity
        return 0


def _set(out: Any, value: int) -> int:
    out._obj.value = value
    return 0


def _set_handle(out: Any, number: int) -> int:
    ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p)).contents.value = number
    return 0


@contextmanager
def loaded(driver: FakeDriver) -> Iterator[FakeDriver]:
    """Make ``pynvml`` load ``driver`` instead of the real library."""

    def load() -> None:
        pynvml.nvmlLib = driver

    names = ("nvmlLib", "_LoadNvmlLibrary", "_nvmlGetFunctionPointer_cache", "_nvmlLib_refcount")
    before = {name: vars(pynvml)[name] for name in names}
    vars(pynvml).update(_LoadNvmlLibrary=load, _nvmlGetFunctionPointer_cache={}, nvmlLib=None)
    try:
        yield driver
    finally:
        vars(pynvml).update(before)
