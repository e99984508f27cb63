import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.core.errors import EXIT_DIVERGED, EXIT_STOPPED, WorkspaceError
from image_classification.reporting.compare.regression import (
    DEFAULTS,
    compare_figure,
    compare_folders,
    compare_runs,
    comparison_json,
    folders_json,
    holds_runs,
    print_folders,
)
from image_classification.reporting.run_folder import read_run


@pytest.fixture
def two(record_run, run_results):
    """An old run and a new one with the given options and figures."""

    def make(images_per_s=8300.0, top1=76.8, **options):
        old = read_run(record_run("old", results=run_results(8300.0, 76.8)))
        results = options.pop("results", None) or run_results(images_per_s, top1)
        return old, read_run(record_run("new", ended_at=9, results=results, **options))

    return make


def verdicts(comparison):
    return {change.figure: change.verdict for change in comparison.changes}


@pytest.mark.parametrize(
    ("images_per_s", "top1", "speed", "accuracy"),
    [
        (8300.0, 76.8, "ok", "ok"),
        (8300.0 * 0.95, 76.6, "ok", "ok"),
        (8300.0 * 0.949, 76.59, "regressed", "regressed"),
        (8300.0 * 1.051, 77.01, "improved", "improved"),
    ],
)
def test_changes_beyond_the_thresholds_are_judged(two, images_per_s, top1, speed, accuracy):
    comparison = compare_runs(*two(images_per_s, top1))
    found = verdicts(comparison)
    assert found == {"top1": accuracy, "top5": "ok", "train_images_per_s": speed}
    regressed = [change.figure for change in comparison.regressed]
    assert regressed == [key for key, verdict in found.items() if verdict == "regressed"]


def test_thresholds_can_be_changed(two):
    comparison = compare_runs(*two(7000.0, 76.5), {**DEFAULTS, "throughput": 20.0, "top1": 0.0})
    assert verdicts(comparison)["train_images_per_s"] == "ok"
    (change,) = comparison.regressed
    assert (change.figure, change.threshold, change.unit) == ("top1", 0.0, "points")
    assert change.change == pytest.approx(-0.3)


@pytest.mark.parametrize(
    ("figure", "old", "new", "verdict"),
    [
        ("latency_ms_p50_batch_8", 10.0, 10.6, "regressed"),
        ("memory_g_per_device", 10.0, 9.0, "improved"),
        ("power_w_per_device", 100.0, 109.0, "ok"),
        ("train_images_per_s", 0.0, 1.0, "not measured"),
    ],
)
def test_lower_is_better_for_latency_memory_and_power(figure, old, new, verdict):
    assert compare_figure(figure, old, new, DEFAULTS).verdict == verdict


def test_upper_percentiles_and_losses_are_not_compared(two):
    figures = {"latency_ms_p99_batch_8": 10.0, "loss": 1.0, "time_total_s": 5.0, "top1": 76.0}
    old, new = (replace(run, figures=figures) for run in two())
    assert [change.figure for change in compare_runs(old, new).changes] == ["top1"]


def test_a_figure_that_one_run_lacks_is_not_measured(two, run_results):
    results = run_results()
    results["validation"]["top1"] = None
    comparison = compare_runs(*two(results=results))
    assert verdicts(comparison)["top1"] == "not measured" and comparison.regressed == []
    with pytest.raises(WorkspaceError, match="have no figure in common"):
        compare_runs(comparison.old, replace(comparison.new, figures={}))


def test_environments_are_compared_by_key(two):
    comparison = compare_runs(
        *two(environment={"torch": "2.11.0", "driver": None}, device="Tesla V100-SXM2-32GB")
    )
    assert comparison.environment == {
        "device": ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"),
        "driver": ("550.54.15", "-"),
        "torch": ("2.10.0", "2.11.0"),
    }
    content = comparison_json(comparison)
    assert content["environment"]["torch"] == {"old": "2.10.0", "new": "2.11.0"}
    assert content["regressed"] == [] and content["new"]["ended_at"] == "2026-01-09T03:00:00+00:00"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "FP32"}, r"not the same named run \(precision AMP -> FP32; "),
        ({"recipe": "50e"}, r"recipe 90e -> 50e; schedule.epochs 90 -> 50"),
        ({"platform__num_devices": 4, "batch__global": 1024}, "platform.num_devices 8 -> 4"),
    ],
)
def test_runs_of_other_names_are_refused(two, options, words):
    with pytest.raises(WorkspaceError, match=words):
        compare_runs(*two(**options))


def test_another_seed_is_the_same_named_run(two):
    assert compare_runs(*two(seed=7)).regressed == []


def test_a_run_that_ended_early_is_refused(two):
    with pytest.raises(WorkspaceError, match="ended early, status 'stopped'"):
        compare_runs(*two(exit_code=75))


def shown(found) -> str:
    out = io.StringIO()
    print_folders(Console(file=out, width=100, color_system=None), found)
    return out.getvalue()


@pytest.fixture
def folders(tmp_path, record_run, run_results):
    """An old and a new folder with a run of two names each; the second of the new one slower."""
    record_run("old/convergence", results=run_results(8300.0, 76.8))
    record_run("old/fp32", precision="FP32", results=run_results(2850.0, 77.0))
    record_run("new/convergence", results=run_results(8250.0, 76.9), environment={"torch": "2.14"})
    record_run(
        "new/other-folder-name",
        precision="FP32",
        results=run_results(2500.0, 77.0),
        environment={"torch": "2.14"},
    )
    return tmp_path / "old", tmp_path / "new"


def test_runs_are_paired_by_name(folders):
    found = compare_folders(*folders)
    pairs = [(c.old.label, c.new.label, [r.figure for r in c.regressed]) for c in found.comparisons]
    assert pairs == [
        ("convergence", "convergence", []),
        ("fp32", "other-folder-name", ["train_images_per_s"]),
    ]
    assert found.regressed == ["resnet50 FP32 convergence DGX1V 90e, 8 devices"]
    assert not found.not_compared
    text = shown(found)
    assert text.count("Environments differ") == 1
    assert "Regressed: resnet50 FP32 convergence DGX1V 90e, 8 devices" in text
    content = folders_json(found)
    assert content["regressed"] == found.regressed
    assert [c["old"]["runs"] for c in content["comparisons"]] == [1, 1]


def test_repeated_runs_are_compared_by_their_median(tmp_path, record_run, run_results):
    for at, speed in enumerate((100.0, 101.0, 60.0)):
        record_run(f"old/{at}", results=run_results(speed), ended_at=1 + at)
    record_run("new/0", results=run_results(99.0))
    found = compare_folders(tmp_path / "old", tmp_path / "new")
    (comparison,) = found.comparisons
    speed = next(c for c in comparison.changes if c.figure == "train_images_per_s")
    assert (speed.old, speed.new) == (100.0, 99.0)
    assert comparison.old_runs == 3
    text = shown(found)
    assert "old: median of 3 runs, the newest 2, 2026-01-03" in text
    assert "new: 0, 2026-01-05" in text
    assert "No figure of 1 run regressed." in text


def test_runs_without_a_counterpart_are_reported(folders, record_run):
    record_run("old/tf32", precision="TF32", platform="DGXA100", recipe=None)
    record_run("new/bf16", precision="BF16", platform="DGXA100", recipe=None)
    record_run("new/lr", optim__lr=1.0)
    (folders[1] / "damaged").mkdir()
    (folders[1] / "damaged" / "report.json").write_text("{")
    record_run("new/stopped", exit_code=EXIT_STOPPED, exit_message="SIGTERM")
    found = compare_folders(*folders)
    assert len(found.comparisons) == 2
    other, bf16, tf32 = sorted(found.not_compared, key=lambda text: text.split()[1])
    assert other.startswith("resnet50 AMP convergence DGX1V 90e, 8 devices: other settings")
    assert "optim.lr 2.048 -> 1)" in other
    assert bf16.startswith("resnet50 BF16") and bf16.endswith(f"only in {folders[1]}")
    assert tf32.startswith("resnet50 TF32") and tf32.endswith(f"only in {folders[0]}")
    assert len(found.left_out) == 2
    text = shown(found).replace("\n", "")
    assert text.count("not compared: ") == 3 and text.count("left out: ") == 2


def test_a_run_that_diverged_has_regressed(folders, record_run):
    record_run("new/diverged", exit_code=EXIT_DIVERGED, exit_message="loss is nan")
    found = compare_folders(*folders)
    assert "resnet50 AMP convergence DGX1V 90e, 8 devices diverged" in found.regressed


def test_folders_without_a_common_run_are_an_error(tmp_path, record_run):
    record_run("old/a")
    record_run("new/a", precision="FP32")
    with pytest.raises(
        WorkspaceError, match=r"no run of .*/new can be compared with one of .*/old"
    ):
        compare_folders(tmp_path / "old", tmp_path / "new")
    with pytest.raises(WorkspaceError, match=r"none.* cannot be listed|cannot list .*none"):
        compare_folders(tmp_path / "none", tmp_path / "new")


def test_a_run_is_not_a_folder_of_runs(tmp_path: Path, record_run):
    run = record_run("runs/a")
    assert holds_runs(tmp_path / "runs")
    assert not holds_runs(run)
    assert not holds_runs(run / "report.json")
    assert read_run(run).label == "a"
