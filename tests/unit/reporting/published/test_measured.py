"""Inference, power, memory and older publications against what a run measured."""

from dataclasses import replace

import pytest
from rich.console import Console

from image_classification.config.resolve import resolve
from image_classification.core.types import DevicesFound
from image_classification.reporting.build_report import build_report
from image_classification.reporting.figures import (
    label_of,
    split_batch,
    value_text,
    with_batch,
)
from image_classification.reporting.page import write_page
from image_classification.reporting.published.load import rows_for
from image_classification.reporting.published.verdict import band_of, newest
from image_classification.reporting.results import print_results
from tests.support.runs import compared

V100 = DevicesFound("cuda", ("Tesla V100-SXM2-16GB",))
BI_V100 = DevicesFound("cuda", ("Iluvatar BI-V100",) * 8)
TABLE = "nvidia-resnet50-v100-16g-amp-inference"


def inference_config(**overrides):
    given = {"platform.num_devices": 1, **overrides}
    return resolve("resnet50", "AMP", "benchmark_inference", "DGX1V", overrides=given)


def passes(batch, rate, mean, p99):
    latency = {"mean": mean, "p50": mean, "p90": mean, "p95": mean, "p99": p99}
    return {"batch": batch, "images_per_s": rate, "latency_ms": latency}


def by_figure(*arguments, **keywords):
    return {entry.figure: entry for entry in newest(compared(*arguments, **keywords))}


def test_inference_is_judged_for_each_batch_size():
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0), passes(128, 3000.0, 50.0, 41.0)]}
    entries = by_figure(inference_config(), measured, V100)
    assert entries["inference_images_per_s_batch_64"].verdict == "reproduced"
    assert entries["inference_images_per_s_batch_64"].published == 2984
    assert entries["inference_images_per_s_batch_128"].verdict == "short"
    # A longer latency is the worse one; the published one of batch 128 is 43.55 ms.
    assert entries["latency_ms_mean_batch_128"].verdict == "short"
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
def test_what_bars_a_comparison_of_latency(overrides, devices, why):
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0)]}
    entry = by_figure(inference_config(**overrides), measured, devices)["latency_ms_p95_batch_64"]
    assert not entry.comparable
    assert why in entry.why


def test_a_doubtful_mean_latency_carries_its_note():
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0)]}
    entries = by_figure(inference_config(), measured, V100)
    assert "as if it had warm-up in it" in entries["latency_ms_mean_batch_64"].why
    assert "as if it had warm-up in it" not in entries["latency_ms_p99_batch_64"].why


def bi_v100(**overrides):
    """The published BI-V100 run with power and memory: 512 images a device."""
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
    assert entries["memory_g_per_device"].verdict == "short"


def test_power_of_another_batch_is_not_comparable():
    config = resolve("resnet50", "AMP", "convergence", "BI-V100x8")
    entry = by_figure(config, {}, BI_V100, telemetry=telemetry(128.0, 1))["power_w_per_device"]
    assert "per-device batch 480, published 512" in entry.why


@pytest.mark.parametrize("readings", [None, {}, {"devices": None}, telemetry(None, None)])
def test_without_a_sensor_power_and_memory_are_not_measured(readings):
    entries = by_figure(bi_v100(), {}, BI_V100, telemetry=readings)
    for figure in ("power_w_per_device", "memory_g_per_device"):
        assert entries[figure].measured is None
        assert entries[figure].why == "not measured"


def test_power_of_some_devices_is_not_the_power_of_all():
    sensed = telemetry(128.0, 2**30)
    sensed["devices"][3]["power_w_mean"] = None
    entries = by_figure(bi_v100(), {}, BI_V100, telemetry=sensed)
    assert entries["power_w_per_device"].measured is None


def test_the_container_of_the_source_is_told_with_a_speed(make_config, results, dgx1):
    entries = by_figure(make_config(), results, dgx1, environment={"torch": "2.10.0"})
    assert entries["train_images_per_s"].why == (
        "-0.3 %, tolerance 5 %; published with PyTorch NGC 21.03, here torch 2.10.0"
    )
    assert entries["train_images_per_s"].comparable
    assert "21.03" not in entries["top1"].why


def test_other_publications_follow_the_newest(make_config, results, dgx1):
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


def test_another_frameworks_figures_are_never_taken():
    config = resolve("resnet50", "AMP", "convergence", "DGXA100", "90e")
    found = compared(config, {}, DevicesFound("cuda", ("NVIDIA A100-SXM4-80GB",) * 8))
    assert found
    assert all("mxnet" not in e.id and "paddle" not in e.id for e in found)


def test_bands_of_inference_name_their_batch():
    drawn = {band.figure: band for band in map(band_of, rows_for(inference_config()))}
    assert drawn["inference_images_per_s_batch_64"].low == pytest.approx(0.95 * 2984)


def test_names_and_texts_of_figures():
    assert with_batch("latency_ms_p95", 64) == "latency_ms_p95_batch_64"
    assert split_batch("latency_ms_p95_batch_64") == ("latency_ms_p95", 64)
    assert split_batch("top1") == ("top1", None)
    assert label_of("latency_ms_p95_batch_64") == "latency p95 at 64"
    assert value_text("latency_ms_p95_batch_64", 39.361) == "39.36 ms"
    assert value_text("train_speedup", 2.91) == "2.91"
    assert value_text("power_w_per_device", None) == "-"
    assert value_text("inference_images_per_s_batch_1", 78.0) == "78.0 images/s"


def test_the_console_shows_the_newest_and_counts_the_rest(make_config, results, dgx1, tmp_path):
    report = build_report(make_config(), devices=dgx1, environment={}, results=results)
    console = Console(record=True, width=160, file=(tmp_path / "out").open("w"))
    print_results(console, report, folder=tmp_path)
    text = console.export_text()
    console.file.close()
    rest = len(report.published) - len(newest(report.published))
    assert rest > 3
    assert f"{rest} more figures of other publications in report.json" in text
    assert "nvidia-resnet50-dgx1v-amp-90e, top-1: -0.08 points" in text
    assert "nvidia-pyt1910" not in text


def test_the_inference_verdicts_fit_eighty_columns(tmp_path):
    measured = {"inference": [passes(128, 1234.5, 2517.67, 2725.39)]}
    config = inference_config(**{"run.inference_batches": (128,)})
    report = build_report(config, devices=V100, environment={}, results=measured)
    console = Console(record=True, width=80, file=(tmp_path / "out").open("w"))
    print_results(console, report, folder=tmp_path)
    text = console.export_text()
    console.file.close()
    table = text[text.index("Against the published figures") :]
    assert "…" not in table
    assert "latency mean at 128" in table


def test_the_page_folds_other_publications_away(make_config, results, dgx1, tmp_path):
    report = build_report(make_config(), devices=dgx1, environment={}, results=results)
    text = write_page(report, tmp_path).read_text(encoding="utf-8")
    before, _, folded = text.partition("<summary>Other publications")
    assert "nvidia-resnet50-dgx1v-amp-90e" in before
    assert "nvidia-pyt1910-resnet50-dgx1v-amp-90e" not in before
    assert "nvidia-pyt1910-resnet50-dgx1v-amp-90e" in folded


def test_the_console_says_once_what_bars_a_whole_table(tmp_path):
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0), passes(128, 3000.0, 50.0, 41.0)]}
    config = inference_config(**{"platform.num_devices": 8, "run.inference_batches": (64, 128)})
    report = build_report(config, devices=V100, environment={}, results=measured)
    console = Console(record=True, width=160, file=(tmp_path / "out").open("w"))
    print_results(console, report, folder=tmp_path)
    text = console.export_text()
    console.file.close()
    assert text.count("8 devices, published with 1") == 1
    assert "latency p99 at 128" in text
