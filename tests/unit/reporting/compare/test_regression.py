from dataclasses import replace
from typing import Any

import pytest

from image_classification.core.errors import EXIT_DIVERGED, EXIT_STOPPED, WorkspaceError
from image_classification.reporting.compare.regression import (
    DEFAULTS,
    compare_folders,
    compare_runs,
    comparison_json,
    folders_json,
    print_comparison,
    print_folders,
)
from image_classification.reporting.run_folder import RecordedRun, read_run


@pytest.fixture
def two(recorded):
    """An old run and a new one with the given options and figures."""

    def make(
        images_per_s: float = 8300.0, top1: float = 76.8, **options: Any
    ) -> tuple[RecordedRun, RecordedRun]:
        old = recorded("old")
        return old, recorded("new", images_per_s, top1, **{"ended_at": 9, **options})

    return make


def verdicts(comparison):
    return {change.figure: change.verdict for change in comparison.changes}


@pytest.mark.parametrize(
    ("images_per_s", "top1", "speed", "accuracy"),
    [
        (8300.0, 76.8, "ok", "ok"),
        (8300.0 * 0.95, 76.6, "ok", "ok"),
        (8300.0 * 0.949, 76.26, "regressed", "regressed"),
        (8300.0 * 1.051, 77.34, "improved", "improved"),
        # 2 standard errors of 50,000 images are 0.53 points.
        (8300.0, 76.28, "ok", "not significant"),
        (8300.0, 77.32, "ok", "not significant"),
    ],
)
def test_changes_beyond_the_thresholds_are_judged(two, images_per_s, top1, speed, accuracy):
    comparison = compare_runs(*two(images_per_s, top1))
    found = verdicts(comparison)
    assert found == {"top1": accuracy, "top5": "ok", "train_images_per_s": speed}
    regressed = [change.figure for change in comparison.regressed]
    assert regressed == [key for key, verdict in found.items() if verdict == "regressed"]


def test_thresholds_can_be_changed(two):
    old, new = two(7000.0, 76.2)
    comparison = compare_runs(old, new, {**DEFAULTS, "throughput": 20.0, "top1": 0.0})
    assert verdicts(comparison)["train_images_per_s"] == "ok"
    (change,) = comparison.regressed
    assert (change.figure, change.threshold, change.unit) == ("top1", 0.0, "points")
    assert change.change == pytest.approx(-0.6)


def with_images(run_results, top1, images, **more):
    results = run_results(8300.0, top1)
    results["validation"] |= {"images": images, **more}
    return results


@pytest.mark.parametrize(
    ("old", "new", "images", "verdict", "error"),
    [
        # One image of 360 is 0.28 points: four images fewer are within chance.
        (94.44, 93.33, 360, "not significant", 1.81),
        (94.44, 61.11, 360, "regressed", 2.84),
        (94.44, 33.33, 360, "regressed", 2.77),
        # 100 % of few images is not exact.
        (100.0, 98.61, 360, "not significant", 0.73),
        (76.8, 76.7, 50_000, "ok", 0.27),
    ],
)
def test_accuracies_are_judged_by_the_number_of_images(
    recorded, run_results, old, new, images, verdict, error
):
    runs = [
        recorded(name, results=with_images(run_results, top1, images))
        for name, top1 in (("a", old), ("b", new))
    ]
    comparison = compare_runs(*runs)
    (change,) = [change for change in comparison.changes if change.figure == "top1"]
    assert change.verdict == verdict
    assert change.standard_error == pytest.approx(error, abs=0.005)
    assert change.in_standard_errors == pytest.approx((new - old) / change.standard_error)
    found = comparison_json(comparison)["changes"][0]
    assert found["standard_error"] == change.standard_error
    assert ("top1" in comparison_json(comparison)["regressed"]) == (verdict == "regressed")


def test_without_the_number_of_images_the_threshold_alone_counts(recorded, run_results):
    runs = [
        recorded(name, results=with_images(run_results, top1, None))
        for name, top1 in (("a", 76.8), ("b", 76.5))
    ]
    (change,) = compare_runs(*runs).regressed
    assert (change.figure, change.standard_error) == ("top1", None)


def test_the_number_of_images_of_one_run_holds_for_both(recorded, run_results):
    runs = [
        recorded(name, results=with_images(run_results, 76.8, images))
        for name, images in (("a", 50_000), ("b", 50_000), ("c", None))
    ]
    both, one = (compare_runs(runs[0], other).changes[0] for other in runs[1:])
    assert both.standard_error is not None and one.standard_error == both.standard_error


def test_equal_seeds_without_the_number_of_images_give_no_standard_error(
    tmp_path, recorded, run_results
):
    for name, top1 in (("old", 76.8), ("new", 76.5)):
        for seed in (0, 1):
            results = with_images(run_results, top1, None)
            recorded(f"{name}/{seed}", results=results, seed=seed)
    (comparison,) = compare_folders(tmp_path / "old", tmp_path / "new").comparisons
    (change,) = comparison.regressed
    assert (change.figure, change.standard_error) == ("top1", None)


def test_the_spread_over_seeds_adds_to_the_standard_error(tmp_path, recorded):
    for seed, top1 in enumerate((76.0, 77.0, 78.0)):
        recorded(f"old/{seed}", top1=top1, seed=seed)
        recorded(f"new/{seed}", top1=top1 - 0.9, seed=seed)
    recorded("one/0", top1=76.1)
    (comparison,) = compare_folders(tmp_path / "old", tmp_path / "new").comparisons
    change = comparison.changes[0]
    assert (change.figure, change.old) == ("top1", 77.0)
    assert change.new == pytest.approx(76.1)
    # Of the images 0.27; of the seeds 1.0 * sqrt(1/3 + 1/3) = 0.82.
    assert change.standard_error == pytest.approx(0.86, abs=0.005)
    assert change.verdict == "not significant"
    # One run against three: 1.0 * sqrt(1/3 + 1).
    (comparison,) = compare_folders(tmp_path / "old", tmp_path / "one").comparisons
    assert comparison.changes[0].standard_error == pytest.approx(1.19, abs=0.005)
    # The same seed again is no further sample of the spread.
    recorded("again/0", top1=77.0)
    recorded("again/1", top1=77.2)
    (comparison,) = compare_folders(tmp_path / "again", tmp_path / "one").comparisons
    assert comparison.changes[0].old == pytest.approx(77.1)
    assert comparison.changes[0].standard_error == pytest.approx(0.27, abs=0.005)


def test_lower_is_better_for_latency_memory_and_power(two):
    # Losses, times and the upper percentiles have no threshold.
    figures = {
        "loss": (1.0, 9.0, None),
        "time_total_s": (5.0, 9.0, None),
        "latency_ms_p99_batch_8": (10.0, 20.0, None),
        "latency_ms_p50_batch_8": (10.0, 10.6, "regressed"),
        "memory_g_per_device": (10.0, 9.0, "improved"),
        "power_w_per_device": (100.0, 109.0, "ok"),
        "train_images_per_s": (0.0, 1.0, "not measured"),
    }
    old, new = (
        replace(run, figures={key: values[side] for key, values in figures.items()})
        for side, run in enumerate(two())
    )
    expected = {key: verdict for key, (_, _, verdict) in figures.items() if verdict}
    assert verdicts(compare_runs(old, new)) == expected


def test_a_figure_that_one_run_lacks_is_not_measured(two, run_results):
    results = run_results()
    results["validation"]["top1"] = None
    comparison = compare_runs(*two(results=results))
    assert verdicts(comparison)["top1"] == "not measured" and not comparison.regressed
    with pytest.raises(WorkspaceError, match="have no figure in common"):
        compare_runs(comparison.old, replace(comparison.new, figures={}))


def test_environments_are_compared_by_key(two):
    environment = {"torch": "2.11.0", "driver": None}
    comparison = compare_runs(*two(environment=environment, device="Tesla V100-SXM2-32GB"))
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
        ({"exit_code": EXIT_STOPPED}, "ended early, status 'stopped'"),
    ],
)
def test_runs_of_other_names_and_stopped_runs_are_refused(two, options, words):
    with pytest.raises(WorkspaceError, match=words):
        compare_runs(*two(**options))


def test_print_comparison(releases, check_shown):
    comparison = compare_runs(read_run(releases / "feb"), read_run(releases / "mar"))
    check_shown("comparison", print_comparison, comparison)


def test_print_comparison_of_equal_runs(two, shown):
    text = shown(print_comparison, compare_runs(*two(seed=7)))
    assert text.endswith("The environments are the same.\nNo figure regressed.\n")


@pytest.fixture
def folders(tmp_path, recorded):
    """An old and a new folder with a run of two names each; the second of the new one slower."""
    new = {"environment": {"torch": "2.14"}}
    recorded("old/convergence")
    recorded("old/fp32", 2850.0, 77.0, precision="FP32")
    recorded("new/convergence", 8250.0, 76.9, **new)
    recorded("new/other-folder-name", 2500.0, 77.0, precision="FP32", **new)
    return tmp_path / "old", tmp_path / "new"


def test_runs_are_paired_by_name(folders, shown):
    found = compare_folders(*folders)
    pairs = [(c.old.label, c.new.label, [r.figure for r in c.regressed]) for c in found.comparisons]
    assert pairs == [
        ("convergence", "convergence", []),
        ("fp32", "other-folder-name", ["train_images_per_s"]),
    ]
    assert not found.not_compared
    text = shown(print_folders, found, width=100)
    assert text.count("Environments differ") == 1
    assert "Regressed: resnet50 FP32 convergence DGX1V 90e, 8 devices" in text
    content = folders_json(found)
    assert content["regressed"] == ["resnet50 FP32 convergence DGX1V 90e, 8 devices"]
    assert [c["old"]["runs"] for c in content["comparisons"]] == [1, 1]


def test_repeated_runs_are_compared_by_their_median(tmp_path, recorded, shown):
    for at, speed in enumerate((100.0, 101.0, 60.0)):
        recorded(f"old/{at}", speed, ended_at=1 + at)
    recorded("new/0", 99.0)
    found = compare_folders(tmp_path / "old", tmp_path / "new")
    (comparison,) = found.comparisons
    (change,) = [c for c in comparison.changes if c.figure == "train_images_per_s"]
    assert (change.old, change.new) == (100.0, 99.0)
    assert comparison.old_runs == 3
    text = shown(print_folders, found, width=100)
    assert "old: median of 3 runs (accuracy: mean), the newest 2, 2026-01-03" in text
    assert "new: 0, 2026-01-05" in text
    assert "No figure of 1 run regressed." in text


def test_runs_without_a_counterpart_are_reported(folders, record_run, shown):
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
    text = " ".join(shown(print_folders, found, width=100).split())
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
    with pytest.raises(WorkspaceError, match=r"cannot list .*none"):
        compare_folders(tmp_path / "none", tmp_path / "new")
