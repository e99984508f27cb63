import json
from typing import Any

import pytest

from image_classification.reporting.compare.combine import (
    Combined,
    combined_json,
    print_combined,
    vendor_row,
)
from image_classification.reporting.compare.groups import group_runs
from image_classification.reporting.run_folder import read_run

ONE_DEVICE: dict[str, Any] = {
    "platform__num_devices": 1,
    "batch__global": 256,
    "optim__lr": 0.256,
}
FP32 = {"precision": "FP32"}
V100S = [{"name": "V100", "power_w_mean": 250.0, "memory_peak_bytes": 13 * 2**30}] * 8


@pytest.fixture
def combined(recorded):
    """Combine runs of (options, images/s)."""

    def make(*runs):
        names = enumerate(runs)
        return Combined.of(
            group_runs([recorded(f"run-{n}", speed, **options) for n, (options, speed) in names])
        )

    return make


def test_speed_up_over_full_precision(combined):
    both = combined(({}, 8300.0), (FP32, 2850.0))
    (ratio,) = both.speedups
    assert ratio.value == pytest.approx(8300 / 2850)
    assert ratio.published == pytest.approx(8322 / 2855)
    assert ratio.verdict == "reproduced" and ratio.why == "-0.1 %, tolerance 7 %"
    assert (ratio.of.precision, ratio.over.precision) == ("AMP", "FP32")
    assert not both.scalings


def test_a_speed_up_that_falls_short(combined):
    (ratio,) = combined(({}, 6000.0), (FP32, 2850.0)).speedups
    assert ratio.verdict == "below"


def test_weak_scaling(combined):
    (ratio,) = combined(({}, 8300.0), (ONE_DEVICE, 1190.0)).scalings
    assert ratio.value == pytest.approx(8300 / (8 * 1190))
    assert ratio.published == pytest.approx(8322 / (8 * 1200))
    assert ratio.verdict == "reproduced"
    assert (ratio.over.num_devices, ratio.of.num_devices) == (1, 8)


def test_different_devices_have_no_speed_up_and_no_scaling(combined):
    a100 = {"device": "NVIDIA A100-SXM4-80GB"}
    both = combined(({}, 8300.0), (FP32 | a100, 2850.0), (ONE_DEVICE | a100, 2000.0))
    (ratio,) = both.speedups
    assert ratio.value is None and ratio.verdict == "not-comparable"
    assert ratio.why == "ran on NVIDIA A100-SXM4-80GB and on Tesla V100-SXM2-16GB"
    assert not both.scalings


def test_different_batches_are_not_weak_scaling(combined):
    small = {"platform__num_devices": 1, "batch__per_device": 128, "batch__global": 128}
    (ratio,) = combined(({}, 8300.0), (small, 1190.0)).scalings
    assert ratio.value is None
    assert ratio.why == "128 and 256 images per device: not weak scaling"


def test_a_ratio_without_a_published_one_is_still_measured(combined):
    two = {"platform__num_devices": 2, "batch__global": 512, "optim__lr": 0.512}
    (ratio,) = combined((two, 2300.0), (ONE_DEVICE, 1190.0)).scalings
    assert ratio.value == pytest.approx(2300 / 2380) and ratio.published is None
    assert ratio.why == "no published ratio of these runs"


def test_a_speed_of_zero_has_no_ratio(combined):
    both = combined(({}, 8300.0), (FP32, 0.0), (ONE_DEVICE, 0.0))
    assert not both.speedups and not both.scalings


def test_vendor_table(recorded, run_results):
    target = {"stop_at_top1": 75.9, "top1": 76.0, "epoch": 85, "step": 5, "time_s": 3600.0}
    runs = [
        recorded(
            f"run-{seed}",
            seed=seed,
            results=run_results(8300.0 + 100 * seed) | {"target": target},
            telemetry={"devices": V100S},
            run__stop_at_top1=75.9,
        )
        for seed in range(2)
    ]
    both = Combined.of(group_runs([*runs, recorded("one", 1190.0, **ONE_DEVICE)]))
    assert vendor_row(both.groups[0], both.scalings) == {
        "convergence criterion": "top-1 75.90 %: reached after epoch 85, 1 h 00 min",
        "configuration": "8 x Tesla V100-SXM2-16GB, batch 256 per device, AMP",
        "performance": "8,350 images/s, training",
        "accuracy": "top-1 76.80 % ± 0.00 (n = 2), top-5 93.20 % ± 0.00 (n = 2)",
        "power": "250.00 W x 8",
        "scalability": "efficiency 87.7 % from 1 to 8 devices",
        "memory": "13.00 GiB x 8",
        "stability": "step p50 / p95 / p99 240.0 / 260.0 / 300.0 ms, speed ± 0.8 % over 2 runs",
    }


def test_vendor_table_without_figures(recorded):
    (group,) = group_runs([recorded("none", results={"inference": None})])
    row = vendor_row(group, ())
    for column in ("performance", "accuracy", "power", "scalability", "memory", "stability"):
        assert row[column] == "not measured"
    assert row["convergence criterion"] == "none"


def test_the_criterion_counts_epochs_that_were_trained(recorded, run_results):
    def criterion(epochs):
        results = run_results()
        results["train"]["epochs"] = epochs
        (group,) = group_runs([recorded(f"run-{epochs}", results=results)])
        return vendor_row(group, ())["convergence criterion"]

    assert criterion(90) == "none, trained for 90 epochs"
    assert criterion(2) == "none, trained for 2 of 90 epochs"


def test_vendor_table_of_a_missed_target_and_of_an_inference_run(recorded):
    missed = {"target": {"stop_at_top1": 75.9}}
    (group,) = group_runs([recorded("missed", results=missed, run__stop_at_top1=75.9)])
    assert vendor_row(group, ())["convergence criterion"] == "top-1 75.90 %: not reached"
    rows = [{"batch": 1, "images_per_s": 100.0}, {"batch": 8, "images_per_s": 700.0}]
    run = recorded("served", mode="benchmark_inference", results={"inference": rows})
    (group,) = group_runs([run])
    row = vendor_row(group, ())
    assert row["performance"] == "700.0 images/s, inference, batch 8"
    assert row["convergence criterion"] == "none (benchmark_inference)"


def change_published(run, entries):
    """Replace the published figures in a run's report."""
    content = json.loads(run.path.read_text()) | {"published": entries}
    run.path.write_text(json.dumps(content))
    return read_run(run.path.parent)


@pytest.fixture
def seeds_and_fp32(recorded):
    """Three seeds of AMP with published figures, and one run of FP32 without."""
    runs = []
    for seed, (speed, top1) in enumerate([(8300.0, 76.8), (8250.0, 76.95), (8330.0, 76.71)]):
        run = recorded(
            f"amp-{seed}",
            speed,
            top1,
            seed=seed,
            ended_at=5 + seed,
            telemetry={"devices": V100S, "energy_j": 1e8, "images_per_joule": 3.2},
        )
        same = {"id": "nvidia-resnet50-dgx1v-amp-90e", "comparable": True, "why": "", "ratio": 1.0}
        same["verdict"] = "reproduced"
        top1_entry = {"figure": "top1", "unit": "percent", "published": 76.88, "measured": top1}
        speed_entry = {"figure": "train_images_per_s", "unit": "images/s", "published": 8322}
        entries = [same | top1_entry, same | speed_entry | {"measured": speed}]
        runs.append(change_published(run, entries))
    runs.append(change_published(recorded("fp32", 2850.0, 77.0, **FP32), []))
    return Combined.of(group_runs(runs))


def test_print_combined(seeds_and_fp32, check_shown):
    check_shown("combined", print_combined, seeds_and_fp32, vendor=True)


def test_inference_runs_have_a_table_of_batch_sizes(releases, shown):
    combined = Combined.of(group_runs([read_run(releases / "served")]))
    text = shown(print_combined, combined, vendor=False)
    assert "│   256 │   25,600 │     - │ 9.90 │ 9.80 │ 10.20 │ 10.40 │ 11.00 │ 1 │" in text
    assert text.startswith("resnet50 AMP benchmark_inference DGX1V 90e, 8 devices, 1 run\nTesla")


def test_combined_json(seeds_and_fp32):
    content = json.loads(json.dumps(combined_json(seeds_and_fp32), allow_nan=False))
    assert list(content) == ["schema_version", "groups", "speedups", "scalings"]
    amp, fp32 = content["groups"]
    assert amp["name"]["precision"] == "AMP" and fp32["name"]["precision"] == "FP32"
    assert [run["seed"] for run in amp["runs"]] == [0, 1, 2]
    top1 = amp["figures"]["top1"]
    assert top1["unit"] == "percent" and top1["n"] == 3 and top1["mean"] == pytest.approx(76.82)
    assert fp32["figures"]["top1"]["std"] is None
    assert amp["published"][0]["verdict"] == "reproduced"
    assert amp["vendor"]["power"] == "250.00 W x 8"
    assert content["speedups"][0]["of"]["precision"] == "AMP"
