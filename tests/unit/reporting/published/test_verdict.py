from dataclasses import replace
from typing import Any

import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.core.types import DevicesFound
from image_classification.reporting.published.load import (
    TOP1_TOLERANCE_POINTS,
    load_published,
    rows_for,
)
from image_classification.reporting.published.verdict import band_of, newest
from image_classification.reporting.report import PublishedComparison
from tests.support.runs import compared

V100 = DevicesFound("cuda", ("Tesla V100-SXM2-16GB",))
BI_V100 = DevicesFound("cuda", ("Iluvatar BI-V100",) * 8)
TABLE = "nvidia-resnet50-v100-16g-amp-inference"


def by_figure(*arguments, **keywords):
    """The comparison with the newest publication of each figure."""
    return {entry.figure: entry for entry in newest(compared(*arguments, **keywords))}


def top1(results, value):
    return {**results, "validation": {**results["validation"], "top1": value}}


def speed(results, value):
    return {**results, "train": {**results["train"], "images_per_s": value}}


def test_every_named_machine_has_rows_for_its_models():
    found = {(row.model, row.platform) for row in load_published()}
    for model in ("resnet50", "resnext101-32x4d", "se-resnext101-32x4d"):
        for platform in ("DGX1V", "DGX1V-32G", "DGX2V", "DGXA100"):
            assert (model, platform) in found
    assert {("resnet50", f"BI-V100x{n}") for n in (1, 4, 8)} <= found


def test_figures_within_the_tolerance_are_reproduced(make_config, results, dgx1):
    entries = by_figure(make_config(), results, dgx1)
    assert entries["top1"] == PublishedComparison(
        id="nvidia-resnet50-dgx1v-amp-90e",
        figure="top1",
        unit="percent",
        published=76.88,
        measured=76.8,
        ratio=76.8 / 76.88,
        comparable=True,
        why="-0.08 points, tolerance 0.32 (2 x the printed spread of 0.16)",
        verdict="reproduced",
    )
    assert entries["train_images_per_s"].verdict == "reproduced"
    assert entries["train_images_per_s"].unit == "images/s"
    assert entries["train_images_per_s"].why == "-0.3 %, tolerance 5 %"


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (76.55, "below"),
        (76.56, "reproduced"),
        (76.88, "reproduced"),
        (77.2, "reproduced"),
        (77.21, "better"),
    ],
)
def test_accuracy_tolerance_is_two_printed_spreads(make_config, results, dgx1, measured, verdict):
    entry = by_figure(make_config(), top1(results, measured), dgx1)["top1"]
    assert (entry.verdict, entry.comparable) == (verdict, True)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(7905.0, "below"), (7905.9, "reproduced"), (8738.1, "reproduced"), (8739.0, "better")],
)
def test_throughput_tolerance_is_five_percent(make_config, results, dgx1, measured, verdict):
    entry = by_figure(make_config(), speed(results, measured), dgx1)["train_images_per_s"]
    assert entry.verdict == verdict


def test_accuracy_tolerance_without_a_printed_spread(make_config, results):
    config = make_config(
        names={"platform": "BI-V100x8", "precision": "FP32"},
        batch={"per_device_batch": 300, "global_batch": 2400},
        optim={"lr": 0.1},
    )
    config = replace(config, sources=("iluvatar-resnet50-bi-v100-x8-fp32-90e",))
    iluvatar = DevicesFound("cuda", ("Iluvatar BI-V100",) * 8)
    lowest = 74.98 - TOP1_TOLERANCE_POINTS
    entry = by_figure(config, top1(results, lowest), iluvatar)["top1"]
    assert entry.verdict == "reproduced"
    assert "no spread printed" in entry.why
    assert by_figure(config, top1(results, lowest - 0.01), iluvatar)["top1"].verdict == "below"


@pytest.mark.parametrize(
    ("changes", "figures", "why"),
    [
        ({"data": {"path": "demo"}}, "both", "demo data set"),
        ({"data": {"path": "synthetic"}}, "both", "synthetic data"),
        ({"data": {"backend": "synthetic"}}, "both", "synthetic data"),
        ({"model": {"num_classes": 10}}, "both", "10 classes, not 1000"),
        ({"names": {"precision": "FP32"}}, "both", "precision FP32, published in AMP"),
        ({"platform": {"device": "cpu"}}, "both", "ran on cpu, published on DGX-1 V100 16GB"),
        (
            {"schedule": {"epochs": 60}},
            "top1",
            "schedule of 60 epochs, published 90",
        ),
        ({"schedule": {"epochs": 100}}, "top1", "stopped after 90 of 100 epochs"),
        ({"batch": {"global_batch": 1024}}, "top1", "global batch 1024, published 2048"),
        ({"optim": {"lr": 0.1}}, "top1", "learning rate 0.1, published 2.048"),
        ({"mixing": {"mixup": 0.2}}, "top1", "mixup 0.2, published 0"),
        ({"model": {"pretrained_from_file": "w.safetensors"}}, "top1", "pretrained weights"),
        ({"run": {"mode": "evaluate"}}, "top1", "evaluation only"),
        (
            {"batch": {"per_device_batch": 128}},
            "train_images_per_s",
            "per-device batch 128, published 256",
        ),
        ({"platform": {"num_devices": 4}}, "train_images_per_s", "4 devices, published with 8"),
    ],
)
def test_a_different_setting_prevents_the_comparison(
    make_config, results, dgx1, changes, figures, why
):
    entries = by_figure(make_config(**changes), results, dgx1)
    for figure, entry in entries.items():
        if figures in ("both", figure):
            assert (entry.verdict, entry.comparable) == ("not-comparable", False)
            assert why in entry.why
            assert entry.ratio is not None
        else:
            assert entry.comparable, f"{figure}: {entry.why}"


def test_another_gpu_prevents_the_comparison_of_throughput_but_not_accuracy(make_config, results):
    entries = by_figure(make_config(), results, DevicesFound("cuda", ("NVIDIA H200",) * 8))
    assert entries["top1"].comparable
    assert entries["train_images_per_s"].why == ("ran on NVIDIA H200, published on DGX-1 V100 16GB")


def test_one_device_is_compared_with_the_figure_of_one(make_config, results, dgx1):
    config = make_config(platform={"num_devices": 1}, batch={"accumulation": 8})
    entry = by_figure(config, speed(results, 1210.0), dgx1)["train_images_per_s"]
    assert (entry.published, entry.verdict) == (1200, "reproduced")


def test_a_run_stopped_early_or_on_fewer_images_is_not_comparable(make_config, results, dgx1):
    early = {**results, "train": {**results["train"], "epochs": 12.5}}
    assert "stopped after 12.5 of 90" in by_figure(make_config(), early, dgx1)["top1"].why
    fewer = {**results, "validation": {**results["validation"], "images": 1000}}
    assert "validated on 1,000 images" in by_figure(make_config(), fewer, dgx1)["top1"].why


@pytest.mark.parametrize("nothing", [{}, {"train": None, "validation": None}])
def test_figures_that_were_not_measured(make_config, dgx1, nothing):
    for entry in newest(compared(make_config(), nothing, dgx1)):
        assert entry.measured is None and entry.ratio is None
        assert (entry.verdict, entry.why) == ("not-comparable", "not measured")


def test_without_sources_the_newest_rows_of_the_same_names_are_used(make_config):
    config = replace(make_config(names={"platform": "DGX1V-16G"}), sources=())
    assert {(row.id, row.figure) for row in rows_for(config)} == {
        ("nvidia-resnet50-dgx1v-amp-90e", "top1"),
        ("nvidia-resnet50-dgx1v-amp-90e", "train_images_per_s"),
    }
    assert rows_for(replace(make_config(names={"platform": "CPU"}), sources=())) == []


def test_rows_are_chosen_by_number_of_epochs_not_by_recipe_name(make_config, results, dgx1):
    # The published command line of the 90-epoch run changes the 250-epoch configuration.
    config = make_config(names={"recipe": "250e"})
    config = replace(config, sources=("nvidia-resnet50-dgx1v-amp-250e",))
    entries = by_figure(config, results, dgx1)
    assert entries["top1"].id == "nvidia-resnet50-dgx1v-amp-90e"
    assert entries["top1"].verdict == "reproduced"
    assert entries["train_images_per_s"].id == "nvidia-resnet50-dgx1v-amp-250e"


def test_a_figure_missing_in_the_source_comes_from_another_publication(make_config):
    config = make_config(
        names={"platform": "DGX2V"}, platform={"num_devices": 16}, batch={"global_batch": 4096}
    )
    config = replace(config, sources=("nvidia-resnet50-dgx2v-amp-90e",))
    ids = {row.figure: row.id for row in rows_for(config)}
    assert ids["top1"] == "nvidia-resnet50-dgx2v-amp-90e"
    assert ids["train_images_per_s"].startswith("nvidia-pyt1910-resnet50-dgx2v-amp")


def test_a_figure_printed_by_two_documents_is_compared_once(make_config):
    run = "resnet50-bi-v100-x8-fp32"
    config = make_config(names={"platform": "BI-V100x8", "precision": "FP32"})
    config = replace(config, sources=(f"iluvatar-{run}-90e", f"biv100-readme-{run}"))
    assert {(row.id, row.figure) for row in rows_for(config)} == {
        (f"iluvatar-{run}-90e", "top1"),
        (f"iluvatar-{run}-90e", "train_images_per_s"),
    }


def test_the_note_of_a_doubtful_figure_is_part_of_why(make_config, results, dgx1):
    config = replace(make_config(), sources=("iluvatar-resnet50-bi-v100-x4-amp-nhwc-90e",))
    assert "implausible" in by_figure(config, results, dgx1)["top1"].why


def test_the_band_of_a_published_figure_is_its_tolerance(make_config):
    drawn = {row.figure: band_of(row) for row in rows_for(make_config())}
    assert (drawn["top1"].low, drawn["top1"].high) == pytest.approx((76.56, 77.2))
    assert drawn["train_images_per_s"].low == pytest.approx(0.95 * 8322)
    assert drawn["top1"].label == "published 76.88 ± 0.32"
    drawn = {band.figure: band for band in map(band_of, rows_for(inference_config()))}
    assert drawn["inference_images_per_s_batch_64"].low == pytest.approx(0.95 * 2984)


def test_settings_changed_during_the_run_prevent_the_comparison_of_accuracy(
    make_config, results, dgx1
):
    starts: list[dict[str, Any]] = [
        {"step": 0, "world_size": 8, "resumed_from": None, "changes": []}
    ]
    run = top1({**results, "starts": starts}, 76.88)
    assert by_figure(make_config(), run, dgx1)["top1"].comparable
    starts.append({**starts[0], "step": 700, "changes": ["optim.lr 0.1 -> 2.048"]})
    found = by_figure(make_config(), run, dgx1)["top1"]
    assert not found.comparable
    assert "settings changed at step 700 (optim.lr 0.1 -> 2.048)" in found.why


def inference_config(**overrides):
    given = {"platform.num_devices": 1, **overrides}
    return resolve("resnet50", "AMP", "benchmark_inference", "DGX1V", overrides=given)


def passes(batch, rate, mean, p99):
    latency = {"mean": mean, "p50": mean, "p90": mean, "p95": mean, "p99": p99}
    return {"batch": batch, "images_per_s": rate, "latency_ms": latency}


def test_inference_is_judged_for_each_batch_size():
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0), passes(128, 3000.0, 50.0, 41.0)]}
    entries = by_figure(inference_config(), measured, V100)
    assert entries["inference_images_per_s_batch_64"].verdict == "reproduced"
    assert entries["inference_images_per_s_batch_64"].published == 2984
    assert entries["inference_images_per_s_batch_128"].verdict == "below"
    # A longer latency is the worse one; the published one of batch 128 is 43.55 ms.
    assert entries["latency_ms_mean_batch_128"].verdict == "below"
    assert entries["latency_ms_mean_batch_128"].unit == "ms"
    assert entries["latency_ms_p99_batch_128"].why == "+2.2 %, tolerance 10 %"
    assert entries["latency_ms_mean_batch_1"].why == "not measured"
    assert {entry.id for entry in entries.values()} == {TABLE}


def test_a_shorter_latency_is_better():
    fast = by_figure(inference_config(), {"inference": [passes(64, 4000.0, 10.0, 11.0)]}, V100)
    assert fast["latency_ms_mean_batch_64"].verdict == "better"
    assert fast["inference_images_per_s_batch_64"].verdict == "better"


def test_only_the_batch_sizes_of_the_run_are_compared():
    config = inference_config(**{"run.inference_batches": (1, 48)})
    assert {row.batch for row in rows_for(config)} == {1}


def test_a_training_run_has_no_inference_figures(make_config):
    assert {row.batch for row in rows_for(make_config())} == {None}


@pytest.mark.parametrize(
    ("overrides", "devices", "why"),
    [
        ({"platform.num_devices": 8}, V100, "8 devices, published with 1"),
        ({}, DevicesFound("cuda", ("NVIDIA H200",)), "ran on NVIDIA H200, published on DGX-1 V100"),
        ({"model.num_classes": 10}, V100, "10 classes, not 1000"),
    ],
)
def test_what_prevents_the_comparison_of_latency(overrides, devices, why):
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0)]}
    entry = by_figure(inference_config(**overrides), measured, devices)["latency_ms_p95_batch_64"]
    assert not entry.comparable
    assert why in entry.why


def test_the_note_of_one_figure_is_not_part_of_others():
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0)]}
    entries = by_figure(inference_config(), measured, V100)
    assert "as if it had warm-up in it" in entries["latency_ms_mean_batch_64"].why
    assert "as if it had warm-up in it" not in entries["latency_ms_p99_batch_64"].why


def bi_v100(**overrides):
    """The published BI-V100 run with power and memory: 512 images per device."""
    given = {"batch.per_device": 512, "batch.global": 4096, **overrides}
    return resolve("resnet50", "AMP", "convergence", "BI-V100x8", overrides=given)


def telemetry(watts, peak_bytes, count=8):
    device = {"name": "BI-V100", "power_w_mean": watts, "memory_peak_bytes": peak_bytes}
    return {"devices": [dict(device) for _ in range(count)]}


def test_power_and_memory_of_each_device_are_compared():
    sensed = telemetry(130.0, 26 * 2**30)
    sensed["devices"][0]["memory_peak_bytes"] = 29 * 2**30
    entries = by_figure(bi_v100(), {}, BI_V100, telemetry=sensed)
    power, memory = entries["power_w_per_device"], entries["memory_g_per_device"]
    assert (power.published, power.measured, power.verdict) == (128, 130.0, "reproduced")
    assert (memory.published, memory.measured, memory.verdict) == (
        29.1,
        29.0,
        "reproduced",
    )
    assert (power.unit, memory.unit) == ("W", "GiB")


def test_less_power_is_better_and_more_memory_short():
    entries = by_figure(bi_v100(), {}, BI_V100, telemetry=telemetry(90.0, 40 * 2**30))
    assert entries["power_w_per_device"].verdict == "better"
    assert entries["memory_g_per_device"].verdict == "below"


def test_power_of_another_batch_is_not_comparable():
    config = resolve("resnet50", "AMP", "convergence", "BI-V100x8")
    entry = by_figure(config, {}, BI_V100, telemetry=telemetry(128.0, 1))["power_w_per_device"]
    assert "per-device batch 480, published 512" in entry.why


@pytest.mark.parametrize("readings", [None, {}, {"devices": None}, telemetry(None, None)])
def test_power_and_memory_without_sensors(readings):
    entries = by_figure(bi_v100(), {}, BI_V100, telemetry=readings)
    for figure in ("power_w_per_device", "memory_g_per_device"):
        assert entries[figure].measured is None
        assert entries[figure].why == "not measured"


def test_power_must_be_measured_on_every_device():
    sensed = telemetry(128.0, 2**30)
    sensed["devices"][3]["power_w_mean"] = None
    entries = by_figure(bi_v100(), {}, BI_V100, telemetry=sensed)
    assert entries["power_w_per_device"].measured is None


def test_the_source_container_is_part_of_why_for_speed(make_config, results, dgx1):
    entries = by_figure(make_config(), results, dgx1, environment={"torch": "2.10.0"})
    assert entries["train_images_per_s"].why == (
        "-0.3 %, tolerance 5 %; published with PyTorch NGC 21.03, here torch 2.10.0"
    )
    assert entries["train_images_per_s"].comparable
    assert "21.03" not in entries["top1"].why


def test_other_publications_come_after_the_newest(make_config, results, dgx1):
    entries = compared(make_config(), results, dgx1)
    first, rest = newest(entries), entries[len(newest(entries)) :]
    assert entries[: len(first)] == first
    of_top1 = {e.id: e.published for e in rest if e.figure == "top1"}
    assert of_top1["nvidia-pyt2006-resnet50-dgx1v-amp-90e"] == 77.09
    assert of_top1["nvidia-pyt1910-resnet50-dgx1v-amp-90e"] == 77.23
    assert len({(e.id, e.figure) for e in entries}) == len(entries)
    values = [(e.figure, e.published) for e in rest if e.figure != "top1"]
    assert len(set(values)) == len(values)


def test_a_figure_with_unrecorded_settings_is_not_comparable(make_config, results, dgx1):
    config = make_config(schedule={"epochs": 250}, mixing={"mixup": 0.2})
    config = replace(config, sources=("nvidia-resnet50-dgx1v-amp-250e",))
    entry = by_figure(config, results, dgx1)["top5"]
    assert (entry.published, entry.measured) == (94.19, 93.2)
    assert not entry.comparable
    assert "are not recorded" in entry.why


def test_figures_of_other_frameworks_are_not_compared():
    config = resolve("resnet50", "AMP", "convergence", "DGXA100", "90e")
    found = compared(config, {}, DevicesFound("cuda", ("NVIDIA A100-SXM4-80GB",) * 8))
    assert found
    assert all("mxnet" not in e.id and "paddle" not in e.id for e in found)


# The published throughput is of another per-device batch than the listed configuration, which
# takes the batch that was published with the accuracy.
OTHER_BATCH = {("resnet50", "DGX2V", "FP32", "train_images_per_s")}

PLATFORMS = {
    "DGX1V": 8,
    "DGX1V-16G": 8,
    "DGX1V-32G": 8,
    "DGX2V": 16,
    "DGXA100": 8,
    "BI-V100x1": 1,
    "BI-V100x4": 4,
    "BI-V100x8": 8,
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_listed_run_with_the_published_values_is_reproduced(platform):
    judged = 0
    for run in load_catalogue().runs():
        if run.platform != platform:
            continue
        config = resolve(run.model, run.precision, "convergence", run.platform, run.recipe)
        for row in rows_for(config):
            if row.figure not in ("top1", "train_images_per_s"):
                continue
            assert row.num_devices == PLATFORMS[platform], (run, row.id)
            devices = DevicesFound("cuda", (f"NVIDIA {row.hardware.device_name}",) * 8)
            results = {
                "train": {"images_per_s": row.value, "epochs": config.schedule.epochs},
                "validation": {"top1": row.value, "images": 50_000},
            }
            (entry,) = [
                entry
                for entry in compared(config, results, devices)
                if (entry.id, entry.figure) == (row.id, row.figure)
            ]
            if (run.model, platform, run.precision, row.figure) in OTHER_BATCH:
                assert entry.why.startswith("per-device batch 256, published 128")
            else:
                assert entry.verdict == "reproduced", (run, row.id, entry.why)
                judged += 1
    assert judged >= 2
