"""NVML's values and errors, through the real ``pynvml`` over a fake C library."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pynvml
import pytest

from image_classification.telemetry.nvml import THROTTLE_REASONS, open_sensors
from image_classification.telemetry.sampler import Sampler, TrainingWindows
from image_classification.telemetry.sensors import (
    FIELDS,
    DeviceLostError,
    RankLocation,
    Reading,
    ReadingFailedError,
    Sensor,
)
from tests.support.nvml import FakeDevice, FakeDriver, loaded

ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"


def location(uuid: str = ONE, bus_id: str = "00000000:3B:00.0") -> RankLocation:
    return RankLocation("node", 100, (0, 1), "Tesla V100", (f"MIG-{uuid}", f"GPU-{uuid}"), bus_id)


Load = Callable[..., FakeDriver]


@pytest.fixture
def driver() -> Iterator[Load]:
    """Load a driver with the given devices; at the end, check that every user has shut it down."""
    with ExitStack() as stack:
        drivers = []

        def load(*devices: FakeDevice, **options: Any) -> FakeDriver:
            drivers.append(stack.enter_context(loaded(FakeDriver(*devices, **options))))
            return drivers[-1]

        yield load
        assert [fake.users for fake in drivers] == [0] * len(drivers)


def read_once(sensor: Sensor) -> Reading:
    try:
        return sensor.read()
    finally:
        sensor.close()


def test_every_field_is_in_the_units_of_the_report(driver: Load) -> None:
    driver(FakeDevice(throttle=0x4 | 0x20 | 0x1))
    (sensor,) = open_sensors([location()])
    assert read_once(sensor) == Reading(
        power_w=250.0,
        energy_j=7000.0,
        memory_bytes=9 * 2**30,
        utilization=0.97,
        temperature_c=61,
        clock_mhz=1380,
        throttle_reasons=("sw_power_cap", "sw_thermal"),
    )
    assert sensor.missing == {} and sensor.source == "NVML"


def test_throttle_reasons_match_nvml() -> None:
    names = {
        "SwPowerCap": "sw_power_cap",
        "HwSlowdown": "hw_slowdown",
        "SyncBoost": "sync_boost",
        "SwThermalSlowdown": "sw_thermal",
        "HwThermalSlowdown": "hw_thermal",
        "HwPowerBrakeSlowdown": "hw_power_brake",
    }
    expected = {vars(pynvml)[f"nvmlClocksEventReason{name}"]: ours for name, ours in names.items()}
    assert expected == THROTTLE_REASONS


def test_gpus_are_found_by_uuid_in_any_order(driver: Load) -> None:
    driver(
        FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0", power_mw=200_000),
        FakeDevice(uuid=f"GPU-{ONE}", power_mw=100_000),
    )
    sensors = open_sensors([location(ONE), location(TWO, "00000000:5E:00.0")])
    assert [read_once(sensor).power_w for sensor in sensors] == [100.0, 200.0]


def test_a_gpu_with_an_unknown_uuid_is_found_by_its_bus_id(driver: Load) -> None:
    driver(FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0"), FakeDevice(power_mw=100_000))
    (sensor,) = open_sensors([location("ffffffff-0000-0000-0000-000000000000")])
    assert read_once(sensor).power_w == 100.0


def test_a_gpu_unknown_to_nvml_is_reported(driver: Load) -> None:
    driver(FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0"))
    (sensor,) = open_sensors([location()])
    assert read_once(sensor) == Reading()
    assert "does not know GPU-" in sensor.missing["power_w"] and sensor.expected


def test_two_ranks_on_one_gpu_are_one_device(driver: Load) -> None:
    driver(FakeDevice())
    sensors = open_sensors([location(), location()])
    assert len(sensors) == 1
    sensors[0].close()


def test_gpus_without_an_id_are_separate_devices(driver: Load) -> None:
    driver(FakeDevice())
    sensors = open_sensors([RankLocation("n", pid, (0,), "BI-V100") for pid in (7, 8)])
    assert [sensor.missing["power_w"] for sensor in sensors] == [
        "NVML does not know a GPU without an id: Not Found"
    ] * 2


@pytest.mark.parametrize(
    "device",
    [
        FakeDevice(uuid=f"MIG-{ONE}"),
        FakeDevice(uuid=f"GPU-{ONE}", mig_mode=pynvml.NVML_DEVICE_MIG_ENABLE),
    ],
    ids=["slice", "GPU"],
)
def test_mig_slice_has_only_memory_and_temperature(driver: Load, device: FakeDevice) -> None:
    driver(device)
    (sensor,) = open_sensors([location()])
    reading = read_once(sensor)
    assert reading == Reading(memory_bytes=9 * 2**30, temperature_c=61)
    assert "MIG" in sensor.missing["power_w"] and "MIG" in sensor.missing["energy_j"]


def test_a_gpu_with_mig_disabled_is_read_completely(driver: Load) -> None:
    driver(FakeDevice(mig_mode=pynvml.NVML_DEVICE_MIG_DISABLE))
    (sensor,) = open_sensors([location()])
    assert read_once(sensor).power_w == 250.0


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    ],
)
def test_a_refused_field_is_queried_once(driver: Load, code: int) -> None:
    fake = driver(FakeDevice(errors={"nvmlDeviceGetTotalEnergyConsumption": code}))
    (sensor,) = open_sensors([location()])
    assert sensor.read().energy_j is None
    assert sensor.read().power_w == 250.0
    assert fake.calls.count("nvmlDeviceGetTotalEnergyConsumption") == 1
    assert sensor.missing == {"energy_j": f"NVML: {pynvml.NVMLError(code)}"}
    sensor.close()


def test_a_function_missing_in_an_old_driver(driver: Load) -> None:
    driver(FakeDevice(), absent=("nvmlDeviceGetTotalEnergyConsumption",))
    (sensor,) = open_sensors([location()])
    assert read_once(sensor).energy_j is None
    assert "Function Not Found" in sensor.missing["energy_j"]


def test_without_any_permission_every_field_has_its_reason(driver: Load) -> None:
    driver(FakeDevice(errors={"*": pynvml.NVML_ERROR_NO_PERMISSION}))
    (sensor,) = open_sensors([location()])
    assert read_once(sensor) == Reading()
    assert set(sensor.missing) == set(FIELDS)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, DeviceLostError),
        (pynvml.NVML_ERROR_RESET_REQUIRED, DeviceLostError),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, DeviceLostError),
        (pynvml.NVML_ERROR_TIMEOUT, ReadingFailedError),
        (pynvml.NVML_ERROR_UNKNOWN, ReadingFailedError),
    ],
)
def test_transient_and_permanent_errors(driver: Load, code: int, error: type[Exception]) -> None:
    driver(FakeDevice(errors={"nvmlDeviceGetPowerUsage": code}))
    (sensor,) = open_sensors([location()])
    with pytest.raises(error, match="NVML"):
        read_once(sensor)


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    ],
)
def test_a_driver_that_fails_to_initialize(driver: Load, code: int) -> None:
    driver(init_error=code)
    sampler = Sampler(open_sensors([location()]), TrainingWindows())
    sampler.start()
    sampler.stop()
    (device,) = sampler.figures()["devices"]
    assert device["power_w_max"] is None and device["memory_peak_bytes"] is None
    assert str(pynvml.NVMLError(code)) in device["source"]
    trouble = sampler.trouble()
    assert trouble is not None and "not measured" in trouble


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", load)
    (sensor,) = open_sensors([location()])
    assert "NVML Shared Library Not Found" in sensor.missing["power_w"]


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (sensor,) = open_sensors([location()])
    assert "nvidia-ml-py" in sensor.missing["power_w"]


def test_a_lost_gpu_keeps_its_maxima_and_the_others_are_still_read(driver: Load) -> None:
    lost = FakeDevice(power_mw=300_000)
    driver(lost, FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0"))
    work = TrainingWindows()
    sampler = Sampler(open_sensors([location(ONE), location(TWO, "00000000:5E:00.0")]), work)
    work.begin(measured=True)
    sampler.start()
    sampler.sample()
    lost.errors["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    sampler.sample()
    trouble = sampler.trouble()
    assert trouble is not None and "GPU is lost (1 of 2)" in trouble
    sampler.stop()
    lost_device, healthy = sampler.figures()["devices"]
    assert lost_device["power_w_max"] == 300.0 and lost_device["temperature_c_max"] == 61
    assert "GPU is lost" in lost_device["source"]
    assert healthy["energy_j"] is not None and healthy["samples"] > lost_device["samples"]
