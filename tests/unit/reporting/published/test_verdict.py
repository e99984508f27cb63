from dataclasses import replace

import pytest

from image_classification.core.types import DevicesFound
from image_classification.reporting.published.load import (
    TOP1_TOLERANCE_POINTS,
    load_published,
    rows_for,
)
from image_classification.reporting.published.verdict import band_of, newest
from image_classification.reporting.report import PublishedComparison
from tests.support.runs import compared


def by_figure(config, results, devices):
    return {entry.figure: entry for entry in newest(compared(config, results, devices))}


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


def test_a_true_reproduction(make_config, results, dgx1):
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
        (76.55, "short"),
        (76.56, "reproduced"),
        (76.88, "reproduced"),
        (77.2, "reproduced"),
        (77.21, "better"),
    ],
)
def test_accuracy_is_judged_by_two_printed_spreads(make_config, results, dgx1, measured, verdict):
    entry = by_figure(make_config(), top1(results, measured), dgx1)["top1"]
    assert (entry.verdict, entry.comparable) == (verdict, True)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(7905.0, "short"), (7905.9, "reproduced"), (8738.1, "reproduced"), (8739.0, "better")],
)
def test_throughput_is_judged_by_five_percent(make_config, results, dgx1, measured, verdict):
    entry = by_figure(make_config(), speed(results, measured), dgx1)["train_images_per_s"]
    assert entry.verdict == verdict


def test_without_a_printed_spread_the_stated_tolerance_holds(make_config, results):
    config = make_config(
        names={"platform": "BI-V100x8", "precision": "FP32"},
        batch={"per_device_batch": 300, "global_batch": 2400},
        optim={"lr": 0.1},
    )
    config = replace(config, sources=("iluvatar-resnet50-bi-v100-x8-fp32-90e",))
    iluvatar = DevicesFound("cuda", ("Iluvatar BI-V100",) * 8)
    least = 74.98 - TOP1_TOLERANCE_POINTS
    entry = by_figure(config, top1(results, least), iluvatar)["top1"]
    assert entry.verdict == "reproduced"
    assert "no spread printed" in entry.why
    assert by_figure(config, top1(results, least - 0.01), iluvatar)["top1"].verdict == "short"


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
def test_what_differs_makes_it_not_comparable(make_config, results, dgx1, changes, figures, why):
    entries = by_figure(make_config(**changes), results, dgx1)
    for figure, entry in entries.items():
        if figures in ("both", figure):
            assert (entry.verdict, entry.comparable) == ("not-comparable", False)
            assert why in entry.why
            assert entry.ratio is not None
        else:
            assert entry.comparable, f"{figure}: {entry['why']}"


def test_another_gpu_bars_throughput_but_not_accuracy(make_config, results):
    entries = by_figure(make_config(), results, DevicesFound("cuda", ("NVIDIA H200",) * 8))
    assert entries["top1"].comparable
    assert entries["train_images_per_s"].why == ("ran on NVIDIA H200, published on DGX-1 V100 16GB")


def test_one_device_is_measured_against_the_figure_for_one(make_config, results, dgx1):
    config = make_config(platform={"num_devices": 1}, batch={"accumulation": 8})
    entry = by_figure(config, speed(results, 1210.0), dgx1)["train_images_per_s"]
    assert (entry.published, entry.verdict) == (1200, "reproduced")


def test_a_run_stopped_early_or_on_fewer_images_is_not_comparable(make_config, results, dgx1):
    early = {**results, "train": {**results["train"], "epochs": 12.5}}
    assert "stopped after 12.5 of 90" in by_figure(make_config(), early, dgx1)["top1"].why
    fewer = {**results, "validation": {**results["validation"], "images": 1000}}
    assert "validated on 1,000 images" in by_figure(make_config(), fewer, dgx1)["top1"].why


@pytest.mark.parametrize("nothing", [{}, {"train": None, "validation": None}])
def test_what_was_not_measured_has_null_and_says_so(make_config, dgx1, nothing):
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


def test_the_number_of_epochs_chooses_the_row_not_the_name_of_the_recipe(
    make_config, results, dgx1
):
    # The published command line of the 90-epoch run changes the 250-epoch configuration.
    config = make_config(names={"recipe": "250e"})
    config = replace(config, sources=("nvidia-resnet50-dgx1v-amp-250e",))
    entries = by_figure(config, results, dgx1)
    assert entries["top1"].id == "nvidia-resnet50-dgx1v-amp-90e"
    assert entries["top1"].verdict == "reproduced"
    assert entries["train_images_per_s"].id == "nvidia-resnet50-dgx1v-amp-250e"


def test_a_figure_the_source_lacks_comes_from_another_publication(make_config):
    config = make_config(
        names={"platform": "DGX2V"}, platform={"num_devices": 16}, batch={"global_batch": 4096}
    )
    config = replace(config, sources=("nvidia-resnet50-dgx2v-amp-90e",))
    ids = {row.figure: row.id for row in rows_for(config)}
    assert ids["top1"] == "nvidia-resnet50-dgx2v-amp-90e"
    assert ids["train_images_per_s"].startswith("nvidia-pyt1910-resnet50-dgx2v-amp")


def test_a_figure_that_two_documents_print_is_taken_once(make_config):
    run = "resnet50-bi-v100-x8-fp32"
    config = make_config(names={"platform": "BI-V100x8", "precision": "FP32"})
    config = replace(config, sources=(f"iluvatar-{run}-90e", f"biv100-readme-{run}"))
    assert {(row.id, row.figure) for row in rows_for(config)} == {
        (f"iluvatar-{run}-90e", "top1"),
        (f"iluvatar-{run}-90e", "train_images_per_s"),
    }


def test_a_doubtful_figure_carries_its_note(make_config, results, dgx1):
    config = replace(make_config(), sources=("iluvatar-resnet50-bi-v100-x4-amp-nhwc-90e",))
    assert "implausible" in by_figure(config, results, dgx1)["top1"].why


def test_the_band_of_a_published_figure_is_its_tolerance(make_config):
    drawn = {row.figure: band_of(row) for row in rows_for(make_config())}
    assert (drawn["top1"].low, drawn["top1"].high) == pytest.approx((76.56, 77.2))
    assert drawn["train_images_per_s"].low == pytest.approx(0.95 * 8322)
    assert drawn["top1"].label == "published 76.88 ± 0.32"


def test_settings_changed_on_the_way_bar_the_accuracy(make_config, results, dgx1):
    starts = [{"step": 0, "world_size": 8, "resumed_from": None, "changes": []}]
    run = top1({**results, "starts": starts}, 76.88)
    assert by_figure(make_config(), run, dgx1)["top1"].comparable
    starts.append({**starts[0], "step": 700, "changes": ["optim.lr 0.1 -> 2.048"]})
    found = by_figure(make_config(), run, dgx1)["top1"]
    assert not found.comparable
    assert "settings changed at step 700 (optim.lr 0.1 -> 2.048)" in found.why
