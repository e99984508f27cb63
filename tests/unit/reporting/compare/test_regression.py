from dataclasses import replace

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.compare.regression import DEFAULTS, changes_of, compare_runs
from image_classification.reporting.compare.regression_text import comparison_json
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
def test_figures_are_held_to_their_thresholds(two, images_per_s, top1, speed, accuracy):
    comparison = compare_runs(*two(images_per_s, top1))
    found = verdicts(comparison)
    assert found == {"top1": accuracy, "top5": "ok", "train_images_per_s": speed}
    regressed = [change.figure for change in comparison.regressed]
    assert regressed == [key for key, verdict in found.items() if verdict == "regressed"]


def test_thresholds_are_the_callers(two):
    comparison = compare_runs(*two(7000.0, 76.5), {**DEFAULTS, "throughput": 20.0, "top1": 0.0})
    assert verdicts(comparison)["train_images_per_s"] == "ok"
    (change,) = comparison.regressed
    assert (change.figure, change.threshold, change.unit) == ("top1", 0.0, "points")
    assert change.change == pytest.approx(-0.3)


def test_less_is_better_for_latency_memory_and_power():
    old = {"latency_ms_p50_batch_8": 10.0, "memory_g_per_device": 10.0, "power_w_per_device": 100.0}
    new = {"latency_ms_p50_batch_8": 10.6, "memory_g_per_device": 9.0, "power_w_per_device": 109.0}
    changes = {change.figure: change.verdict for change in changes_of(old, new, DEFAULTS)}
    assert changes == {
        "latency_ms_p50_batch_8": "regressed",
        "memory_g_per_device": "improved",
        "power_w_per_device": "ok",
    }


def test_upper_percentiles_and_losses_are_not_judged():
    figures = {"latency_ms_p99_batch_8": 10.0, "loss": 1.0, "time_total_s": 5.0}
    assert changes_of(figures, figures, DEFAULTS) == []


def test_what_one_run_did_not_measure_is_neither_better_nor_worse(two, run_results):
    results = run_results()
    results["validation"]["top1"] = None
    comparison = compare_runs(*two(results=results))
    assert verdicts(comparison)["top1"] == "not measured" and comparison.regressed == []
    with pytest.raises(WorkspaceError, match="have no figure in common"):
        compare_runs(comparison.old, replace(comparison.new, figures={}))


def test_an_old_value_of_zero_is_compared_with_nothing():
    (change,) = changes_of({"train_images_per_s": 0.0}, {"train_images_per_s": 1.0}, DEFAULTS)
    assert change.verdict == "not measured" and change.change is None


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
