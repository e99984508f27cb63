"""The sampling thread, what its samples add up to, and when training went on."""

from __future__ import annotations

import threading
import time

import pytest

from image_classification.telemetry import sampler as telemetry
from image_classification.telemetry.rank_location import Place
from image_classification.telemetry.sampler import Sampler, open_sensors
from image_classification.telemetry.sensors import (
    LostError,
    MissedError,
    NoSensor,
    Reading,
)
from image_classification.telemetry.windows import DeviceTally, WorkLog, WorkTotals


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Scripted:
    """A sensor that answers with what it is given: readings, or errors to raise."""

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


def tally_of(*rows) -> tuple[DeviceTally, WorkTotals]:
    """Feed (time, training_s, measured_s, reading) rows."""
    tally = DeviceTally(Scripted(Reading()))
    totals = WorkTotals()
    for now_s, training_s, measured_s, reading in rows:
        totals = WorkTotals(training_s=training_s, measured_s=measured_s)
        tally.take(now_s, totals, reading)
    return tally, totals


def test_work_is_the_time_between_begin_and_end():
    clock = Clock()
    work = WorkLog(clock)
    clock.now_s += 5
    work.begin(measured=False)
    clock.now_s += 2
    work.note(8)
    work.measure()
    clock.now_s += 3
    work.note(8)
    clock.now_s += 0.5
    assert work.totals() == WorkTotals(5.5, 3.5, 5.0, 16, 8)
    work.end()
    clock.now_s += 60
    work.end()
    assert work.is_idle
    work.begin(measured=True)
    clock.now_s += 1
    work.note(8)
    assert work.totals() == WorkTotals(6.5, 4.5, 6.5, 24, 16)


def test_energy_of_the_counter_is_shared_out_by_the_time_in_the_window():
    tally, totals = tally_of(
        (0.0, 0.0, 0.0, Reading(energy_j=1000.0)),
        (1.0, 1.0, 0.5, Reading(energy_j=1200.0)),
        (3.0, 3.0, 2.5, Reading(energy_j=1800.0)),
        (4.0, 3.0, 2.5, Reading(energy_j=9000.0)),
    )
    figures = tally.figures(totals)
    assert figures["energy_j"] == pytest.approx(200 * 0.5 + 600)
    assert figures["power_w_mean"] == pytest.approx(700 / 2.5)
    assert figures["power_w_max"] == pytest.approx(300.0)
    assert figures["window_s"] == 2.5
    assert "energy: counter" in figures["source"]


def test_without_a_counter_power_is_integrated_and_the_source_says_so():
    tally, totals = tally_of(
        (0.0, 0.0, 0.0, Reading(power_w=100.0)),
        (2.0, 2.0, 2.0, Reading(power_w=300.0)),
        (4.0, 4.0, 4.0, Reading(power_w=300.0)),
    )
    tally.sensor.missing["energy_j"] = "NVML: Not Supported"
    figures = tally.figures(totals)
    assert figures["energy_j"] == pytest.approx(2 * 200 + 2 * 300)
    assert figures["power_w_mean"] == pytest.approx(250.0)
    assert figures["power_w_max"] == 300.0
    assert "integral of power" in figures["source"] and "not measured" not in figures["source"]


def test_a_run_of_warm_up_alone_is_measured_over_all_of_it():
    tally, totals = tally_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0, utilization=0.0)),
        (4.0, 3.0, 0.0, Reading(energy_j=400.0, utilization=0.5)),
    )
    figures = tally.figures(totals)
    assert figures["energy_j"] == pytest.approx(300.0) and figures["window_s"] == 3.0
    assert figures["utilization_mean"] == 0.5


def test_without_any_work_means_are_null_and_peaks_are_not():
    tally, totals = tally_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0, memory_bytes=5, temperature_c=40)),
        (4.0, 0.0, 0.0, Reading(energy_j=400.0, memory_bytes=3, temperature_c=50)),
    )
    figures = tally.figures(totals)
    for key in ("energy_j", "power_w_mean", "power_w_max", "utilization_mean", "throttled"):
        assert figures[key] is None, key
    assert figures["window_s"] is None
    assert figures["memory_peak_bytes"] == 5 and figures["temperature_c_max"] == 50


def test_energy_known_for_half_the_work_is_not_given():
    tally, _ = tally_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0)),
        (5.0, 5.0, 5.0, Reading(energy_j=500.0)),
    )
    tally.lost = "NVML: GPU is lost"
    figures = tally.figures(WorkTotals(training_s=10.0, measured_s=10.0))
    assert figures["energy_j"] is None and figures["power_w_mean"] is None
    assert figures["power_w_max"] == pytest.approx(100.0)
    assert "not read to the end: NVML: GPU is lost" in figures["source"]


def test_a_missed_sample_loses_no_energy():
    sensor = Scripted(Reading(energy_j=0.0), MissedError("NVML: Timeout"), Reading(energy_j=90.0))
    work = WorkLog()
    sampler = Sampler([sensor], work)
    work.begin(measured=True)
    for _ in range(3):
        sampler.sample()
        time.sleep(0.05)
    work.end()
    (device,) = sampler.figures()["devices"]
    assert device["energy_j"] == pytest.approx(90.0, rel=0.05) and device["samples"] == 2
    assert sampler.trouble() is None


def test_ten_misses_in_a_row_are_a_loss():
    sampler = Sampler([Scripted(MissedError("NVML: Unknown Error"))], WorkLog())
    for _ in range(12):
        sampler.sample()
    assert "Unknown Error" in (sampler.trouble() or "")


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [((), False), (("sw_power_cap",), False), (("hw_thermal",), True), (("hw_power_brake",), True)],
)
def test_a_power_cap_alone_is_no_throttling(reasons, throttled):
    tally, totals = tally_of(
        (0.0, 0.0, 0.0, Reading(throttle_reasons=())),
        (3.0, 3.0, 3.0, Reading(throttle_reasons=())),
        (4.0, 4.0, 4.0, Reading(throttle_reasons=reasons)),
    )
    figures = tally.figures(totals)
    assert figures["throttled"] is throttled
    assert figures["throttle_reasons"] == dict.fromkeys(reasons, 0.25)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "telemetry"]


def test_the_thread_samples_and_ends():
    sensor = Scripted(Reading(power_w=50.0, memory_bytes=7))
    work = WorkLog()
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


def test_an_error_nobody_thought_of_does_not_leave_the_thread():
    sensor = Scripted(Reading(power_w=50.0), ZeroDivisionError("a bug"))
    other = Scripted(Reading(power_w=60.0))
    sampler = Sampler([sensor, other], WorkLog(), period_s=0.1)
    sampler.start()
    deadline = time.monotonic() + 20
    while sampler.samples < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    sampler.stop()
    first, second = sampler.figures()["devices"]
    assert "ZeroDivisionError: a bug" in first["source"] and first["samples"] == 1
    assert second["samples"] >= 3


def test_a_driver_that_hangs_does_not_hold_the_run(monkeypatch):
    monkeypatch.setattr(telemetry, "_ENDING_S", 0.2)
    release = threading.Event()

    class Hanging(Scripted):
        def read(self) -> Reading:
            if threading.current_thread().name == "telemetry":
                release.wait(60)
            return Reading(power_w=1.0)

    sampler = Sampler([Hanging(Reading())], WorkLog(), period_s=0.05)
    sampler.start()
    sampler.stop()
    try:
        (device,) = sampler.figures()["devices"]
        assert "no answer within" in device["source"]
    finally:
        release.set()


def test_a_costly_sample_comes_less_often():
    class Costly(Scripted):
        def read(self) -> Reading:
            begun_s = time.thread_time()
            while time.thread_time() - begun_s < 0.02:
                pass
            return Reading()

    sampler = Sampler([Costly(Reading())], WorkLog(), period_s=0.01)
    sampler.start()
    time.sleep(1.0)
    sampler.stop()
    # 20 ms each would be taken a hundred times a second; the last belongs to the end.
    assert sampler.samples <= 3


def test_where_nothing_can_be_read_it_says_so():
    (sensor,) = open_sensors("hpu", [Place("node", 1, (0,), "Gaudi 2")])
    assert isinstance(sensor, NoSensor) and not sensor.expected
    sampler = Sampler([sensor], WorkLog())
    sampler.sample()
    (device,) = sampler.figures()["devices"]
    assert device["name"] == "Gaudi 2" and device["power_w_mean"] is None
    assert "no sensors for hpu devices" in device["source"]
    assert sampler.trouble() is None


def test_sensors_that_cannot_be_opened_end_no_run(monkeypatch):
    def fail(places):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "from a driver")

    monkeypatch.setitem(telemetry.SENSORS._entries, "cuda", fail)
    sampler = Sampler(open_sensors("cuda", [Place("node", 1, (0,), "V100")]), WorkLog())
    assert "UnicodeDecodeError" in (sampler.trouble() or "")


def test_power_over_time_is_the_sum_of_the_devices():
    sensors = [Scripted(Reading(power_w=w, temperature_c=w)) for w in (40.0, 60.0)]
    sampler = Sampler(sensors, WorkLog(), period_s=0.1)
    sampler.start()
    time.sleep(0.3)
    sampler.stop()
    records = sampler.take_records()
    assert records
    for record in records:
        assert record["power_w"] == pytest.approx(100.0)
        assert record["temperature_c"] == 60.0 and record["utilization"] is None


def test_losing_every_device_is_told_once_in_one_line():
    sampler = Sampler([Scripted(LostError("NVML: GPU is lost")) for _ in range(8)], WorkLog())
    sampler.sample()
    assert sampler.trouble() == (
        "power and utilisation are not measured to the end: NVML: GPU is lost (8 of 8)"
    )
