"""Training speed: windows, warm-up, percentiles."""

import pytest

from image_classification.devices.accelerator import CpuAccelerator
from image_classification.engine.throughput import ThroughputMeter, histogram, percentiles
from image_classification.telemetry.sampler import TrainingWindows


class FakeClock(CpuAccelerator):
    """An accelerator whose marks are `now_s`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def mark(self) -> float:
        return self.now_s

    def elapsed_s(self, start: float, end: float) -> float:
        return end - start


def run_steps(meter: ThroughputMeter, clock: FakeClock, durations_s, images=10, wait_s=0.0):
    for duration_s in durations_s:
        clock.now_s += duration_s
        meter.step(images, wait_s)


def test_rate_is_images_over_wall_time_not_a_mean_of_rates():
    clock = FakeClock()
    meter = ThroughputMeter(clock, 0, TrainingWindows())
    meter.begin()
    run_steps(meter, clock, [1.0, 3.0])
    meter.flush()
    results = meter.results(world_size=2, epochs=1)
    assert results["images_per_s"] == pytest.approx(20 / 4)
    assert results["images_per_s_per_device"] == pytest.approx(20 / 4 / 2)


def test_warm_up_steps_are_outside_the_measured_window():
    clock = FakeClock()
    meter = ThroughputMeter(clock, 2, TrainingWindows())
    meter.begin()
    run_steps(meter, clock, [100.0, 50.0, 1.0, 1.0])
    meter.flush()
    results = meter.results(1, 1)
    assert results["images_per_s"] == pytest.approx(10.0)
    assert results["step_time_s"]["p50"] == pytest.approx(1.0)
    assert results["steps"] == 4
    assert meter.first_step_s == 100.0


def test_run_shorter_than_the_warm_up_measures_nothing():
    clock = FakeClock()
    meter = ThroughputMeter(clock, 5, TrainingWindows())
    meter.begin()
    run_steps(meter, clock, [1.0])
    meter.flush()
    results = meter.results(1, 1)
    assert results["images_per_s"] is None
    assert results["step_time_s"] == {"p50": None, "p95": None, "p99": None, "histogram": None}

    assert results["data_wait_fraction"] is None


def test_time_between_segments_is_not_counted():
    clock = FakeClock()
    meter = ThroughputMeter(clock, 0, TrainingWindows())
    meter.begin()
    run_steps(meter, clock, [1.0])
    clock.now_s += 1000.0  # evaluation
    meter.begin()
    run_steps(meter, clock, [1.0])
    assert meter.end_epoch().time_s == pytest.approx(2.0)
    assert meter.results(1, 1)["images_per_s"] == pytest.approx(10.0)


def test_sums_between_flushes_and_epochs():
    clock = FakeClock()
    meter = ThroughputMeter(clock, 0, TrainingWindows())
    meter.begin()
    run_steps(meter, clock, [1.0, 1.0], wait_s=0.25)
    first = meter.flush()
    run_steps(meter, clock, [2.0])
    second = meter.flush()
    assert (first.steps, first.time_s, first.data_wait_s) == (2, 2.0, 0.5)
    assert (second.steps, second.time_s) == (1, 2.0)
    assert first.compute_images_per_s == pytest.approx(20 / 1.5)
    assert meter.end_epoch().steps == 3
    assert meter.end_epoch().steps == 0


def test_percentiles_interpolate():
    assert percentiles([1.0, 2.0, 3.0], (50, 100)) == {"p50": 2.0, "p100": 3.0}
    assert percentiles([], (50,)) == {"p50": None}


def test_telemetry_windows_follow_segments_and_warm_up():
    clock = FakeClock()
    meter = ThroughputMeter(clock, 2, TrainingWindows())
    assert meter.work.is_idle
    meter.begin()
    run_steps(meter, clock, [1.0])
    assert meter.work.totals().measured_s == 0.0
    run_steps(meter, clock, [1.0, 1.0])
    meter.end_epoch()
    assert meter.work.is_idle
    meter.begin()
    run_steps(meter, clock, [1.0])
    meter.pause()
    assert meter.work.is_idle
    totals = meter.work.totals()
    assert (totals.images, totals.measured_images) == (40, meter.measured.images) == (40, 20)
    assert 0 < totals.measured_s < totals.training_s


def test_step_times_are_counted_in_bins_and_the_longest_in_the_last():
    found = histogram([1.0] * 90 + [1.5] * 9 + [60.0])
    assert found is not None
    assert (found["low_s"], found["high_s"], found["longest_s"]) == (1.0, 3.0, 60.0)
    assert len(found["counts"]) == 20
    assert {i: n for i, n in enumerate(found["counts"]) if n} == {0: 90, 5: 9, 19: 1}
    equal = histogram([2.0, 2.0, 2.0])
    assert (
        equal is not None and equal["low_s"] < 2.0 < equal["high_s"] and sum(equal["counts"]) == 3
    )
    assert histogram([1.0, 2.0]) is None
