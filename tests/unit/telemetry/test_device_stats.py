import pytest

from image_classification.telemetry.device_stats import DeviceStats
from image_classification.telemetry.sensors import MissingSensor, Reading
from image_classification.telemetry.training_windows import WindowTotals


def stats_of(*rows) -> tuple[DeviceStats, WindowTotals]:
    """Add (time, training_s, measured_s, reading) rows."""
    stats = DeviceStats(MissingSensor("device", "x"))
    stats.sensor.missing.clear()
    totals = WindowTotals()
    for now_s, training_s, measured_s, reading in rows:
        totals = WindowTotals(training_s=training_s, measured_s=measured_s)
        stats.add(now_s, totals, reading, span_s=0.0)
    return stats, totals


def test_energy_of_the_counter_is_divided_by_time_at_the_edges_of_the_window():
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


def test_without_a_counter_power_is_integrated():
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


def test_a_run_that_ends_in_its_warm_up_is_measured_over_all_steps():
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0, utilization=0.0)),
        (4.0, 3.0, 0.0, Reading(energy_j=400.0, utilization=0.5)),
    )
    figures = stats.figures(totals)
    assert figures["energy_j"] == pytest.approx(300.0) and figures["window_s"] == 3.0
    assert figures["utilization_mean"] == 0.5


def test_without_any_step_means_are_null_and_peaks_are_not():
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(energy_j=0.0, memory_bytes=5, temperature_c=40)),
        (4.0, 0.0, 0.0, Reading(energy_j=400.0, memory_bytes=3, temperature_c=50)),
    )
    figures = stats.figures(totals)
    for key in ("energy_j", "power_w_mean", "power_w_max", "utilization_mean", "throttled"):
        assert figures[key] is None, key
    assert figures["window_s"] is None
    assert figures["memory_peak_bytes"] == 5 and figures["temperature_c_max"] == 50


def test_energy_known_for_half_the_window_is_null():
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
def test_a_power_cap_alone_is_not_throttling(reasons, throttled):
    stats, totals = stats_of(
        (0.0, 0.0, 0.0, Reading(throttle_reasons=())),
        (3.0, 3.0, 3.0, Reading(throttle_reasons=())),
        (4.0, 4.0, 4.0, Reading(throttle_reasons=reasons)),
    )
    figures = stats.figures(totals)
    assert figures["throttled"] is throttled
    assert figures["throttle_reasons"] == dict.fromkeys(reasons, 0.25)
