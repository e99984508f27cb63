import pytest

from image_classification.reporting.compare.combine import group_runs
from image_classification.reporting.compare.combined import Combined
from image_classification.reporting.compare.vendor_table import vendor_row
from image_classification.reporting.run_folder import read_run


@pytest.fixture
def combined(record_run, run_results):
    def make(*runs):
        """Each: (options, images/s)."""
        recorded = [
            read_run(record_run(f"run-{n}", results=run_results(speed), **options))
            for n, (options, speed) in enumerate(runs)
        ]
        return Combined.of(group_runs(recorded))

    return make


ONE = {"platform__num_devices": 1, "batch__global": 256, "optim__lr": 0.256}


def test_speed_up_over_full_precision(combined):
    both = combined(({}, 8300.0), ({"precision": "FP32"}, 2850.0))
    (ratio,) = both.speedups
    assert ratio.value == pytest.approx(8300 / 2850)
    assert ratio.published == pytest.approx(8322 / 2855)
    assert ratio.verdict == "reproduced" and ratio.why == "-0.1 %, tolerance 7 %"
    assert (ratio.of.precision, ratio.over.precision) == ("AMP", "FP32")
    assert both.scalings == ()


def test_a_speed_up_that_falls_short(combined):
    (ratio,) = combined(({}, 6000.0), ({"precision": "FP32"}, 2850.0)).speedups
    assert ratio.verdict == "short"


def test_weak_scaling(combined):
    (ratio,) = combined(({}, 8300.0), (ONE, 1190.0)).scalings
    assert ratio.value == pytest.approx(8300 / (8 * 1190))
    assert ratio.published == pytest.approx(8322 / (8 * 1200))
    assert ratio.verdict == "reproduced"
    assert (ratio.over.num_devices, ratio.of.num_devices) == (1, 8)


def test_different_devices_have_no_speed_up_and_no_scaling(combined):
    a100 = {"device": "NVIDIA A100-SXM4-80GB"}
    both = combined(({}, 8300.0), ({"precision": "FP32"} | a100, 2850.0), (ONE | a100, 2000.0))
    (ratio,) = both.speedups
    assert ratio.value is None and ratio.verdict == "not-comparable"
    assert ratio.why == "ran on NVIDIA A100-SXM4-80GB and on Tesla V100-SXM2-16GB"
    assert both.scalings == ()


def test_different_batches_are_not_weak_scaling(combined):
    small = {"platform__num_devices": 1, "batch__per_device": 128, "batch__global": 128}
    (ratio,) = combined(({}, 8300.0), (small, 1190.0)).scalings
    assert ratio.value is None
    assert ratio.why == "128 and 256 images per device: not weak scaling"


def test_a_ratio_without_a_published_one_is_still_measured(combined):
    two = {"platform__num_devices": 2, "batch__global": 512, "optim__lr": 0.512}
    (ratio,) = combined((two, 2300.0), (ONE, 1190.0)).scalings
    assert ratio.value == pytest.approx(2300 / 2380) and ratio.published is None
    assert ratio.why == "no published ratio of these runs"


def test_a_speed_of_zero_has_no_ratio(combined):
    both = combined(({}, 8300.0), ({"precision": "FP32"}, 0.0), (ONE, 0.0))
    assert both.speedups == () and both.scalings == ()


def test_vendor_table(record_run, run_results):
    devices = [{"name": "V100", "power_w_mean": 250.0, "memory_peak_bytes": 13 * 2**30}] * 8
    target = {"stop_at_top1": 75.9, "top1": 76.0, "epoch": 85, "step": 5, "time_s": 3600.0}
    runs = [
        read_run(
            record_run(
                f"run-{seed}",
                seed=seed,
                results=run_results(8300.0 + 100 * seed) | {"target": target},
                telemetry={"devices": devices},
                run__stop_at_top1=75.9,
            )
        )
        for seed in range(2)
    ]
    one = read_run(record_run("one", results=run_results(1190.0), **ONE))
    both = Combined.of(group_runs([*runs, one]))
    row = vendor_row(both.groups[0], both.scalings)
    assert row == {
        "convergence criterion": "top-1 75.90 %: reached after epoch 85, 1 h 00 min",
        "configuration": "8 x Tesla V100-SXM2-16GB, batch 256 per device, AMP",
        "performance": "8,350 images/s, training",
        "accuracy": "top-1 76.80 % ± 0.00 (n = 2), top-5 93.20 % ± 0.00 (n = 2)",
        "power": "250.00 W x 8",
        "scalability": "0.88 from 1 to 8 devices",
        "memory": "13.00 GiB x 8",
        "stability": "step p50 / p95 / p99 240.0 / 260.0 / 300.0 ms, speed ± 0.8 % over 2 runs",
    }


def test_vendor_table_without_figures(record_run):
    (group,) = group_runs([read_run(record_run("none", results={"inference": None}))])
    row = vendor_row(group, ())
    for column in ("performance", "accuracy", "power", "scalability", "memory", "stability"):
        assert row[column] == "not measured"
    assert row["convergence criterion"] == "none, trained for 90 epochs"


def test_vendor_table_of_a_missed_target_and_of_an_inference_run(record_run):
    missed = {"target": {"stop_at_top1": 75.9}}
    (group,) = group_runs([read_run(record_run("missed", results=missed, run__stop_at_top1=75.9))])
    assert vendor_row(group, ())["convergence criterion"] == "top-1 75.90 %: not reached"
    rows = [{"batch": 1, "images_per_s": 100.0}, {"batch": 8, "images_per_s": 700.0}]
    run = record_run("served", mode="benchmark_inference", results={"inference": rows})
    (group,) = group_runs([read_run(run)])
    row = vendor_row(group, ())
    assert row["performance"] == "700.0 images/s, inference, batch 8"
    assert row["convergence criterion"] == "none (benchmark_inference)"
