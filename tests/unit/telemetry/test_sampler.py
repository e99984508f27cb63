"""The sampling thread, its figures and its records."""

from __future__ import annotations

import threading
import time

import pytest

from image_classification.telemetry import sampler as telemetry
from image_classification.telemetry.rank_location import RankLocation
from image_classification.telemetry.sampler import Sampler, open_sensors
from image_classification.telemetry.sensors import (
    DeviceLostError,
    MissingSensor,
    Reading,
    ReadingFailedError,
)
from image_classification.telemetry.training_windows import TrainingWindows


class Scripted:
    """Returns the given readings, or raises the given errors; repeats the last."""

    name, source, expected = "device", "script", True

    def __init__(self, *answers) -> None:
        self.missing: dict[str, str] = {}
        self.answers = list(answers)
        self.closed = threading.Event()

    def read(self) -> Reading:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self.closed.set()


def test_a_failed_reading_loses_no_energy():
    sensor = Scripted(
        Reading(energy_j=0.0), ReadingFailedError("NVML: Timeout"), Reading(energy_j=90.0)
    )
    work = TrainingWindows()
    sampler = Sampler([sensor], work)
    work.begin(measured=True)
    for _ in range(3):
        sampler.sample()
        time.sleep(0.05)
    work.end()
    (device,) = sampler.figures()["devices"]
    assert device["energy_j"] == pytest.approx(90.0, rel=0.05) and device["samples"] == 2
    assert sampler.trouble() is None


def test_a_device_is_lost_after_ten_failed_readings_in_a_row():
    sampler = Sampler([Scripted(ReadingFailedError("NVML: Unknown Error"))], TrainingWindows())
    for _ in range(12):
        sampler.sample()
    assert "Unknown Error" in (sampler.trouble() or "")


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "telemetry"]


def test_the_thread_samples_and_ends():
    sensor = Scripted(Reading(power_w=50.0, memory_bytes=7))
    work = TrainingWindows()
    sampler = Sampler([sensor], work, period_s=0.1)
    sampler.start()
    assert threads() == ["telemetry"]
    work.begin(measured=True)
    deadline = time.monotonic() + 20
    while sampler.samples < 4 and time.monotonic() < deadline:
        work.note(8)
        time.sleep(0.02)
    sampler.stop()
    sampler.stop()
    assert threads() == [] and sensor.closed.is_set()
    figures = sampler.figures()
    assert figures["window"] == "measured"
    (device,) = figures["devices"]
    assert device["power_w_mean"] == pytest.approx(50.0)
    records = sampler.take_records()
    assert records and sampler.take_records() == []
    assert records[0]["power_w"] == pytest.approx(50.0)
    assert records[0]["images_per_s"] > 0 and records[0]["temperature_c"] is None
    assert sum(r["span_s"] for r in records) > 0.5 * device["window_s"]


def test_an_unexpected_error_in_a_sensor_does_not_end_the_thread():
    sensor = Scripted(Reading(power_w=50.0), ZeroDivisionError("a bug"))
    other = Scripted(Reading(power_w=60.0))
    sampler = Sampler([sensor, other], TrainingWindows(), period_s=0.1)
    sampler.start()
    deadline = time.monotonic() + 20
    while sampler.samples < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    sampler.stop()
    first, second = sampler.figures()["devices"]
    assert "ZeroDivisionError: a bug" in first["source"] and first["samples"] == 1
    assert second["samples"] >= 3


def test_a_driver_that_hangs_does_not_block_the_run(monkeypatch):
    monkeypatch.setattr(telemetry, "_JOIN_TIMEOUT_S", 0.2)
    release = threading.Event()

    class Hanging(Scripted):
        def read(self) -> Reading:
            if threading.current_thread().name == "telemetry":
                release.wait(60)
            return Reading(power_w=1.0)

    sampler = Sampler([Hanging(Reading())], TrainingWindows(), period_s=0.05)
    sampler.start()
    sampler.stop()
    try:
        (device,) = sampler.figures()["devices"]
        assert "no answer within" in device["source"]
    finally:
        release.set()


def test_expensive_samples_are_taken_less_often():
    class Costly(Scripted):
        def read(self) -> Reading:
            begun_s = time.thread_time()
            while time.thread_time() - begun_s < 0.02:
                pass
            return Reading()

    sampler = Sampler([Costly(Reading())], TrainingWindows(), period_s=0.01)
    sampler.start()
    time.sleep(1.0)
    sampler.stop()
    # Unlimited, there would be some 50 samples of 20 ms. One of these is the final sample.
    assert sampler.samples <= 3


def test_a_kind_of_device_without_sensors():
    (sensor,) = open_sensors("hpu", [RankLocation("node", 1, (0,), "Gaudi 2")])
    assert isinstance(sensor, MissingSensor) and not sensor.expected
    sampler = Sampler([sensor], TrainingWindows())
    sampler.sample()
    (device,) = sampler.figures()["devices"]
    assert device["name"] == "Gaudi 2" and device["power_w_mean"] is None
    assert "no sensors for hpu devices" in device["source"]
    assert sampler.trouble() is None


def test_sensors_that_cannot_be_opened_are_reported(monkeypatch):
    def fail(places):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "from a driver")

    monkeypatch.setitem(telemetry.SENSORS._entries, "cuda", fail)
    sampler = Sampler(
        open_sensors("cuda", [RankLocation("node", 1, (0,), "V100")]), TrainingWindows()
    )
    assert "UnicodeDecodeError" in (sampler.trouble() or "")


def test_records_have_the_total_power_of_the_devices():
    sensors = [Scripted(Reading(power_w=w, temperature_c=w)) for w in (40.0, 60.0)]
    sampler = Sampler(sensors, TrainingWindows(), period_s=0.1)
    sampler.start()
    time.sleep(0.3)
    sampler.stop()
    records = sampler.take_records()
    assert records
    for record in records:
        assert record["power_w"] == pytest.approx(100.0)
        assert record["temperature_c"] == 60.0 and record["utilization"] is None


def test_losing_every_device_is_one_line():
    sampler = Sampler(
        [Scripted(DeviceLostError("NVML: GPU is lost")) for _ in range(8)], TrainingWindows()
    )
    sampler.sample()
    assert sampler.trouble() == (
        "power and utilization are not measured to the end: NVML: GPU is lost (8 of 8)"
    )
