"""``report submit``: the entry of a measured run, read back and shown; runs that are refused."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.published import load
from image_classification.reporting.published.submit import submission
from image_classification.reporting.run_folder import read_run
from tests.unit.docs.conftest import script

H100 = "NVIDIA H100 80GB HBM3"
CACHED = (load._entries, load.load_hardware, load.load_runs, load.load_published, load.rows_of)
__all__ = ["script"]


def speed(**changes: Any) -> dict[str, Any]:
    """Results of three epochs of benchmark_training on ImageNet with eight devices."""
    train = {
        "images_per_s": 24_000.04,
        "images_per_s_per_device": 3_000.0,
        "step_time_s": {"p50": 0.085, "p95": 0.09, "p99": 0.1},
        "data_wait_fraction": 0.01,
        "epochs": 3.0,
        "steps": 1875,
        "images": 1875 * 2048,
    }
    start: dict[str, Any] = {"step": 0, "world_size": 8, "resumed_from": None, "changes": []}
    return {"train": train | changes, "starts": (start,), "time_s": {"total": 170.0}}


def accuracy() -> dict[str, Any]:
    results = speed(epochs=90.0, steps=56_250, images=56_250 * 2048)
    results["validation"] = {"top1": 76.9321, "top5": 93.4, "loss": 0.96, "images": 50_000}
    return results | {"time_s": {"total": 5000.0}}


@pytest.fixture
def measured(record_run: Callable[..., Path]) -> Callable[..., Path]:
    """Write the report of a benchmark on a DGX H100, or with other options."""

    def make(**options: Any) -> Path:
        standard: dict[str, Any] = {
            "platform": "DGXH100",
            "mode": "benchmark_training",
            "device": H100,
            "results": speed(),
            "data__path": "/imagenet",
        }
        return record_run("run", **standard | options)

    return make


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], load.PublishedRun]]:
    """Append an entry to the content of published.yml; return its run as `load_runs` reads it."""
    content = copy.deepcopy(load._content())

    def append(text: str) -> load.PublishedRun:
        content["runs"] += yaml.safe_load(text)
        monkeypatch.setattr(load, "_content", lambda: content)
        for each in CACHED:
            each.cache_clear()
        return load.load_runs()[-1]

    yield append
    monkeypatch.undo()
    for each in CACHED:
        each.cache_clear()


def test_an_entry_is_read_back_and_shown_on_the_page(measured, published, script):
    found = submission(read_run(measured()), by="A. Engineer")
    run = published(found.yaml())
    assert run.named == load.RunName("resnet50", "DGXH100", "AMP", "90e")
    assert run.hardware == load.Hardware(H100, "cuda", "H100 80GB HBM3")
    assert str(run.source).startswith("Measured by A. Engineer (torch ")
    figures = {row.figure: row.value for row in load.rows_of(run)}
    assert figures == {"train_images_per_s": 24_000.0}
    load.load_published()
    figures_page = script("pages.figures")
    sources = script("pages.published").Sources()
    section = figures_page.training("resnet50", sources).partition(f"### {H100}\n")[2]
    assert "| 8 | 24,000 |" in section
    assert "images per device: 256" in section
    assert str(run.source) in sources.listed()
    empty = figures_page.not_measured("resnet50")
    assert "| DGXH100 | 8 | AMP |" not in empty
    assert "| DGXH100 | 8 | TF32 |" in empty


def test_the_row(measured):
    assert submission(read_run(measured())).markdown().splitlines() == [
        "| machine | devices | precision | images per device | images/s |",
        "| --- | --- | --- | --- | --- |",
        f"| {H100} | 8 | AMP | 256 | 24,000.0 |",
    ]


def test_a_whole_training_has_its_accuracy_power_and_time(measured, published, script):
    device = {"name": H100, "power_w_mean": 612.34, "memory_peak_bytes": 40 * 2**30}
    telemetry = {"devices": [{**device, "throttled": True}] * 8}
    folder = measured(mode="convergence", results=accuracy(), telemetry=telemetry)
    run = published(submission(read_run(folder)).yaml())
    assert {row.figure: row.value for row in load.rows_of(run)} == {
        "top1": 76.932,
        "top5": 93.4,
        "train_images_per_s": 24_000.0,
        "time_to_train_min": 83.3,
        "power_w_per_device": 612.3,
        "memory_g_per_device": 40.0,
    }
    assert (run.kind, run.recipe.epochs, run.recipe.global_batch) == ("convergence", 90, 2048)
    assert run.note == "the devices lowered their clocks during the run"
    page = script("pages.figures").accuracy("resnet50", script("pages.published").Sources())
    assert "| 8 | 90 | 76.932 | 93.4 |" in page.partition(f"### {H100}\n")[2]


def test_inference_has_its_table(measured, published):
    latency = {"mean": 2.25, "p50": 2.0, "p90": 2.5, "p95": 3.0, "p99": None}
    results = {"inference": [{"batch": 8, "images_per_s": 3555.5, "latency_ms": latency}]}
    folder = measured(mode="benchmark_inference", results=results, data__path="synthetic")
    run = published(submission(read_run(folder)).yaml())
    rows = {row.key: row.value for row in load.rows_of(run)}
    assert rows["inference_images_per_s_batch_8"] == 3555.5
    assert rows["latency_ms_mean_batch_8"] == 2.25
    assert "latency_ms_p99_batch_8" not in rows


def test_a_known_machine_keeps_its_key(measured, published):
    folder = measured(platform="DGX1V", device="Tesla V100-SXM2-16GB")
    run = published(submission(read_run(folder)).yaml())
    assert run.hardware.name == "DGX-1 V100 16GB"


def test_waiting_for_data_is_noted(measured):
    found = submission(read_run(measured(results=speed(data_wait_fraction=0.35))))
    assert found.entry["note"] == "35 % of the time was spent waiting for data"


SHORT = {"epochs": 0.16, "steps": 100, "images": 100 * 2048}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exit_code": 75}, "ended with stopped: run it to its end"),
        ({"mode": "evaluate"}, "--mode evaluate measures no figure of the tables: use"),
        ({"device": "NVIDIA A100"}, "ran on NVIDIA A100 .* not on DGXH100's H100: name the"),
        ({"platform__device": "cpu"}, r"ran on .* \(cpu\), not on DGXH100's H100: name the"),
        ({"data__path": "demo"}, "demo data set: give ImageNet's folder"),
        ({"data__path": "synthetic"}, "synthetic data: give ImageNet's folder"),
        ({"data__backend": "synthetic"}, "synthetic data: give ImageNet's folder"),
        ({"model__num_classes": 100}, "100 classes, not 1000: give"),
        ({"results": speed(images=9000, epochs=3.0)}, "about 3,000 training images, not"),
        ({"data__image_size": 128}, "data.image_size is 128, not 224 as its name says: start"),
        ({"results": speed(**SHORT)}, "of 80 steps in 7 s: train at least 100 steps and 30 s"),
        ({"results": {}}, "measured no training speed: train more steps"),
        ({"mode": "convergence"}, "trained 3 of 90 epochs: train to the end, or use"),
        (
            {"mode": "convergence", "results": accuracy(), "optim__lr": 1.0},
            "optim.lr is 1.0, not 2.048 as its name says",
        ),
        (
            {"mode": "benchmark_inference", "run__inference_iterations": 10},
            "10 passes per batch are too few: time at least 50",
        ),
    ],
)
def test_figures_that_would_mislead_are_refused_with_the_remedy(measured, options, reason):
    with pytest.raises(WorkspaceError, match=reason) as raised:
        submission(read_run(measured(**options)))
    assert raised.value.message.startswith("run: ")


def test_another_learning_rate_does_not_matter_for_speed(measured):
    assert submission(read_run(measured(optim__lr=1.0))).entry["recipe"]["lr"] == 1.0


def test_changed_settings_in_mid_run_are_refused(measured):
    results = speed()
    results["starts"] = ({**results["starts"][0], "changes": ["optim.lr 2 -> 1"]},)
    with pytest.raises(WorkspaceError, match="settings changed at step 0"):
        submission(read_run(measured(results=results)))
