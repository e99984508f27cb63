"""The sampling thread, its figures and its records."""

import threading
import time
from collections.abc import Sequence

import pytest

from image_classification.telemetry import sampler as sampler_module
from image_classification.telemetry import sensors as sensors_module
from image_classification.telemetry.sampler import (
    DeviceStats,
    Sampler,
    TrainingWindows,
    WindowTotals,
)
from image_classification.telemetry.sensors import (
    DeviceLostError,
    RankLocation,
    Reading,
    ReadingFailedError,
    Sensor,
    open_sensors,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_time_counts_between_begin_and_end() -> None:
    clock = Clock()
    work = TrainingWindows(clock)
    clock.now_s += 5
    work.begin(measured=False)
    clock.now_s += 2
    work.note(8)
    work.measure()
    clock.now_s += 3
    work.note(8)
    clock.now_s += 0.5
    assert work.totals() == WindowTotals(5.5, 3.5, 5.0, 16, 8)
    work.end()
    clock.now_s += 60
    work.end()
    assert work.is_idle
    work.begin(measured=True)
    clock.now_s += 1
    work.note(8)
    assert work.totals() == WindowTotals(6.5, 4.5, 6.5, 24, 16)


def stats_of(*rows: tuple[float, float, float, Reading]) -> tuple[DeviceStats, WindowTotals]:
    """Add (time, training_s, measured_s, reading) rows."""
    stats = DeviceStats(Sensor("device", {}))
    totals = WindowTotals()
    for now_s, training_s, measured_s, reading in rows:
        totals = WindowTotals(training_s=training_s, measured_s=measured_s)
        stats.add(now_s, totals, reading)
    return stats, totals


def test_energy_of_the_counter_is_divided_by_time_at_the_edges_of_the_window() -> None:
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(energy_j=1000.0)),
        (1.0, 1.0, 0.5, Reading(energy_j=1200.0)),
        (3.0, 3.0, 2.5, Reading(energy_j=1800.0)),
        (4.0, 3.0, 2.5, Reading(energy_j=9000.0)),
    )
    figures = stats.figures(totals)
    assert figures["energy_j"] == pytest.approx(200 * 0.5 + 600)
    assert figures["power_w_mean"] == pytest.approx(700 / 2.5)
    assert figures["power_w_max"] == pytest.approx(300.0)
    assert figures["window_s"] == 2.5
    assert "energy: counter" in figures["source"]


def test_without_a_counter_power_is_integrated() -> None:
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(power_w=100.0)),
        (2.0, 2.0, 2.0, Reading(power_w=300.0)),
        (4.0, 4.0, 4.0, Reading(power_w=300.0)),
    )
    stats.sensor.missing["energy_j"] = "NVML: Not Supported"
    figures = stats.figures(totals)
    assert figures["energy_j"] == pytest.approx(2 * 200 + 2 * 300)
    assert figures["power_w_mean"] == pytest.approx(250.0)
    assert figures["power_w_max"] == 300.0
    assert "integral of power" in figures["source"] and "not measured" not in figures["source"]


def test_a_run_that_ends_in_its_warm_up_is_measured_over_all_steps() -> None:
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0, utilization=0.0)),
        (4.0, 3.0, 0.0, Reading(energy_j=400.0, utilization=0.5)),
    )
    figures = stats.figures(totals)
    assert figures["energy_j"] == pytest.approx(300.0) and figures["window_s"] == 3.0
    assert figures["utilization_mean"] == 0.5


def test_without_any_step_means_are_null_and_peaks_are_not() -> None:
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0, memory_bytes=5, temperature_c=40)),
        (4.0, 0.0, 0.0, Reading(energy_j=400.0, memory_bytes=3, temperature_c=50)),
    )
    figures = stats.figures(totals)
    for key in ("energy_j", "power_w_mean", "power_w_max", "utilization_mean", "throttled"):
        assert figures[key] is None, key
    assert figures["window_s"] is None
    assert figures["memory_peak_bytes"] == 5 and figures["temperature_c_max"] == 50


def test_energy_known_for_half_the_window_is_null() -> None:
    stats, _ = stats_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0)),
        (5.0, 5.0, 5.0, Reading(energy_j=500.0)),
    )
    stats.lost = "NVML: GPU is lost"
    figures = stats.figures(WindowTotals(training_s=10.0, measured_s=10.0))
    assert figures["energy_j"] is None and figures["power_w_mean"] is None
    assert figures["power_w_max"] == pytest.approx(100.0)
    assert "not read to the end: NVML: GPU is lost" in figures["source"]


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [((), False), (("sw_power_cap",), False), (("hw_thermal",), True), (("hw_power_brake",), True)],
)
def test_a_power_cap_alone_is_not_throttling(reasons: tuple[str, ...], throttled: bool) -> None:
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(throttle_reasons=())),
        (3.0, 3.0, 3.0, Reading(throttle_reasons=())),
        (4.0, 4.0, 4.0, Reading(throttle_reasons=reasons)),
    )
    figures = stats.figures(totals)
    assert figures["throttled"] is throttled
    assert figures["throttle_reasons"] == dict.fromkeys(reasons, 0.25)


class Scripted(Sensor):
    """Returns the given readings, or raises the given errors; repeats the last."""

    source = "script"
    expected = True

    def __init__(self, *answers: Reading | Exception) -> None:
        super().__init__("device", {})
        self.answers = list(answers)
        self.closed = threading.Event()

    def read(self) -> Reading:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed.set()


def test_a_failed_reading_loses_no_energy() -> None:
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


def test_a_device_is_lost_after_ten_failed_readings_in_a_row() -> None:
    sampler = Sampler([Scripted(ReadingFailedError("NVML: Unknown Error"))], TrainingWindows())
    for _ in range(12):
        sampler.sample()
    assert "Unknown Error" in (sampler.trouble() or "")


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "telemetry"]


def test_the_thread_samples_and_ends() -> None:
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


def test_an_unexpected_error_in_a_sensor_does_not_end_the_thread() -> None:
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


def test_a_driver_that_hangs_does_not_block_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "_JOIN_TIMEOUT_S", 0.2)
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


def test_expensive_samples_are_taken_less_often() -> None:
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


def test_a_kind_of_device_without_sensors() -> None:
    (sensor,) = open_sensors("hpu", [RankLocation("node", 1, (0,), "Gaudi 2")])
    assert not sensor.expected
    sampler = Sampler([sensor], TrainingWindows())
    sampler.sample()
    (device,) = sampler.figures()["devices"]
    assert device["name"] == "Gaudi 2" and device["power_w_mean"] is None
    assert "no sensors for hpu devices" in device["source"]
    assert sampler.trouble() is None


def test_sensors_that_cannot_be_opened_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(locations: Sequence[RankLocation]) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "from a driver")

    monkeypatch.setitem(sensors_module.SENSORS._entries, "cuda", fail)
    sampler = Sampler(
        open_sensors("cuda", [RankLocation("node", 1, (0,), "V100")]), TrainingWindows()
    )
    assert "UnicodeDecodeError" in (sampler.trouble() or "")


def test_records_have_the_total_power_of_the_devices() -> None:
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


def test_losing_every_device_is_one_line() -> None:
    sampler = Sampler(
        [Scripted(DeviceLostError("NVML: GPU is lost")) for _ in range(8)], TrainingWindows()
    )
    sampler.sample()
    assert sampler.trouble() == (
        "power and utilization are not measured to the end: NVML: GPU is lost (8 of 8)"
    )
