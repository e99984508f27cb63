"""NVML's answers and failures, through the real ``pynvml`` over a library that is made up."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pynvml
import pytest

from image_classification.telemetry.nvml import THROTTLE_REASONS, open_sensors
from image_classification.telemetry.rank_location import Place, cuda_ids
from image_classification.telemetry.sampler import Sampler
from image_classification.telemetry.sensors import (
    FIELDS,
    LostError,
    MissedError,
    Reading,
)
from image_classification.telemetry.windows import WorkLog
from tests.support.fake_driver import FakeDevice, FakeDriver, loaded

ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"


def place(uuid: str = ONE, bus_id: str = "00000000:3B:00.0", **values) -> Place:
    uuids = (f"MIG-{uuid}", f"GPU-{uuid}")
    return Place("node", 100, (0, 1), "Tesla V100", uuids, bus_id, **values)


@pytest.fixture
def driver():
    """Load a driver with the devices given; every user of the library must have left at the end."""
    stack = []

    def load(*devices, **options):
        context = loaded(FakeDriver(*devices, **options))
        stack.append(context)
        return context.__enter__()

    yield load
    for context in stack:
        fake = pynvml.nvmlLib
        context.__exit__(None, None, None)
        assert fake is None or fake.users == 0


def read_once(sensor) -> Reading:
    try:
        return sensor.read()
    finally:
        sensor.close()


def test_every_field_in_the_report_s_units(driver):
    driver(FakeDevice(throttle=0x4 | 0x20 | 0x1))
    (sensor,) = open_sensors([place()])
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


def test_the_throttle_reasons_are_nvml_s():
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


def test_gpus_are_found_by_uuid_whatever_their_order(driver):
    driver(
        FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0", power_mw=200_000),
        FakeDevice(uuid=f"GPU-{ONE}", power_mw=100_000),
    )
    sensors = open_sensors([place(ONE), place(TWO, "00000000:5E:00.0")])
    assert [read_once(sensor).power_w for sensor in sensors] == [100.0, 200.0]


def test_a_gpu_with_an_unknown_uuid_is_found_by_its_bus(driver):
    driver(FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0"), FakeDevice(power_mw=100_000))
    (sensor,) = open_sensors([place("ffffffff-0000-0000-0000-000000000000")])
    assert read_once(sensor).power_w == 100.0


def test_a_gpu_nvml_does_not_know_is_said_so(driver):
    driver(FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0"))
    (sensor,) = open_sensors([place()])
    assert read_once(sensor) == Reading()
    assert "does not know GPU-" in sensor.missing["power_w"] and sensor.expected


def test_two_ranks_on_one_gpu_are_one_device(driver):
    driver(FakeDevice())
    sensors = open_sensors([place(), place()])
    assert len(sensors) == 1
    sensors[0].close()


def test_gpus_without_an_id_are_not_confused_with_one_another(driver):
    driver(FakeDevice())
    sensors = open_sensors([Place("n", pid, (0,), "BI-V100") for pid in (7, 8)])
    assert [sensor.missing["power_w"] for sensor in sensors] == [
        "NVML does not know a GPU without an id: Not Found"
    ] * 2


def test_ids_come_from_torch_and_a_slice_from_the_environment():
    properties = SimpleNamespace(uuid=ONE, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    uuids, bus_id = cuda_ids(properties, {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert uuids == (f"MIG-{ONE}", f"GPU-{ONE}") and bus_id == "00000000:3B:00.0"
    uuids, _ = cuda_ids(properties, {"CUDA_VISIBLE_DEVICES": f"MIG-{TWO}"})
    assert uuids == (f"MIG-{TWO}", f"MIG-{ONE}", f"GPU-{ONE}")


@pytest.mark.parametrize(
    "device",
    [
        FakeDevice(uuid=f"MIG-{ONE}"),
        FakeDevice(uuid=f"GPU-{ONE}", mig_mode=pynvml.NVML_DEVICE_MIG_ENABLE),
    ],
    ids=["the slice", "its GPU"],
)
def test_of_a_mig_slice_the_whole_gpu_s_figures_are_not_taken(driver, device):
    driver(device)
    (sensor,) = open_sensors([place()])
    reading = read_once(sensor)
    assert reading == Reading(memory_bytes=9 * 2**30, temperature_c=61)
    assert "MIG" in sensor.missing["power_w"] and "MIG" in sensor.missing["energy_j"]


def test_a_gpu_with_mig_switched_off_is_read_whole(driver):
    driver(FakeDevice(mig_mode=pynvml.NVML_DEVICE_MIG_DISABLE))
    (sensor,) = open_sensors([place()])
    assert read_once(sensor).power_w == 250.0


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    ],
)
def test_a_refused_field_is_asked_for_once(driver, code):
    fake = driver(FakeDevice(errors={"nvmlDeviceGetTotalEnergyConsumption": code}))
    (sensor,) = open_sensors([place()])
    assert sensor.read().energy_j is None
    assert sensor.read().power_w == 250.0
    assert fake.calls.count("nvmlDeviceGetTotalEnergyConsumption") == 1
    assert sensor.missing == {"energy_j": f"NVML: {pynvml.NVMLError(code)}"}
    sensor.close()


def test_a_function_an_old_driver_lacks(driver):
    driver(FakeDevice(), absent=("nvmlDeviceGetTotalEnergyConsumption",))
    (sensor,) = open_sensors([place()])
    assert read_once(sensor).energy_j is None
    assert "Function Not Found" in sensor.missing["energy_j"]


def test_no_permission_at_all_leaves_every_field_with_its_reason(driver):
    driver(FakeDevice(errors={"*": pynvml.NVML_ERROR_NO_PERMISSION}))
    (sensor,) = open_sensors([place()])
    assert read_once(sensor) == Reading()
    assert set(sensor.missing) == set(FIELDS)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, LostError),
        (pynvml.NVML_ERROR_RESET_REQUIRED, LostError),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, LostError),
        (pynvml.NVML_ERROR_TIMEOUT, MissedError),
        (pynvml.NVML_ERROR_UNKNOWN, MissedError),
    ],
)
def test_errors_that_pass_and_errors_that_stay(driver, code, error):
    driver(FakeDevice(errors={"nvmlDeviceGetPowerUsage": code}))
    (sensor,) = open_sensors([place()])
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
def test_a_driver_that_does_not_start(driver, code):
    driver(init_error=code)
    sampler = Sampler(open_sensors([place()]), WorkLog())
    sampler.start()
    sampler.stop()
    (device,) = sampler.figures()["devices"]
    assert device["power_w_max"] is None and device["memory_peak_bytes"] is None
    assert str(pynvml.NVMLError(code)) in device["source"]
    trouble = sampler.trouble()
    assert trouble is not None and "not measured" in trouble


def test_no_driver_on_this_machine(monkeypatch):
    def load():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", load)
    (sensor,) = open_sensors([place()])
    assert "NVML Shared Library Not Found" in sensor.missing["power_w"]


def test_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (sensor,) = open_sensors([place()])
    assert "nvidia-ml-py" in sensor.missing["power_w"]


def test_a_gpu_lost_on_the_way_keeps_its_maxima_and_stops_no_other(driver):
    lost = FakeDevice(power_mw=300_000)
    driver(lost, FakeDevice(uuid=f"GPU-{TWO}", bus_id="00000000:5E:00.0"))
    work = WorkLog()
    sampler = Sampler(open_sensors([place(ONE), place(TWO, "00000000:5E:00.0")]), work)
    work.begin(measured=True)
    sampler.start()
    sampler.sample()
    lost.errors["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    sampler.sample()
    trouble = sampler.trouble()
    assert trouble is not None and "GPU is lost (1 of 2)" in trouble
    sampler.stop()
    gone, healthy = sampler.figures()["devices"]
    assert gone["power_w_max"] == 300.0 and gone["temperature_c_max"] == 61
    assert "GPU is lost" in gone["source"]
    assert healthy["energy_j"] is not None and healthy["samples"] > gone["samples"]
