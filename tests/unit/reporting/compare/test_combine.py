import statistics
from dataclasses import replace

import pytest

from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.reporting.compare.combine import group_runs, spread
from image_classification.reporting.compare.identity import check_ignored, differences
from image_classification.reporting.published.verdict import tolerance_factor
from image_classification.reporting.report import StartResults
from image_classification.reporting.run_folder import read_run

PUBLISHED = "nvidia-resnet50-dgx1v-amp-90e"


@pytest.fixture
def seeds(record_run, run_results):
    """Runs of one name: one for each top-1, with seeds 0, 1, …"""

    def make(*top1, **options):
        return [
            read_run(
                record_run(
                    f"seed-{seed}-{value}",
                    seed=seed,
                    results=run_results(8300.0 + seed, value),
                    **options,
                )
            )
            for seed, value in enumerate(top1)
        ]

    return make


def judged(group, figure="top1"):
    (entry,) = [e for e in group.published if e.figure == figure and e.id == PUBLISHED]
    return entry


def test_mean_and_sample_deviation_over_seeds(seeds):
    (group,) = group_runs(seeds(76.7, 76.8, 77.0))
    top1 = group.figures["top1"]
    assert top1.mean == pytest.approx(76.8333333)
    assert top1.std == pytest.approx(statistics.stdev([76.7, 76.8, 77.0]))
    assert (top1.n, top1.least, top1.most) == (3, 76.7, 77.0)
    assert group.figures["train_images_per_s"].mean == 8301.0
    assert group.warnings == ()


def test_one_run_has_no_deviation(seeds):
    (group,) = group_runs(seeds(76.7))
    assert group.figures["top1"].std is None and group.figures["top1"].n == 1


def test_the_mean_is_judged(seeds):
    # Published: 76.88 +- 0.16. One of the runs alone would be short, the mean is not.
    runs = seeds(76.5, 77.0, 76.9)
    alone = {(e.id, e.figure): e.verdict for e in runs[0].report.published}
    assert alone[PUBLISHED, "top1"] == "short"
    (group,) = group_runs(runs)
    entry = judged(group)
    assert entry.verdict == "reproduced" and entry.n == 3 and entry.comparable
    assert entry.measured == pytest.approx(76.8) and entry.spread == 0.16
    assert entry.tolerance == pytest.approx(2 * 0.16 * (1 / 3 + 1 / 2) ** 0.5)
    assert entry.why == "-0.08 points, tolerance 0.29 (mean of 3 seeds)"
    assert entry.ratio == pytest.approx(76.8 / 76.88)


def test_more_seeds_have_a_smaller_tolerance(seeds):
    # 0.25 below: within two spreads for one seed, too far for the mean of ten.
    few, many = seeds(76.63), seeds(*[76.63 + 0.01 * (-1) ** n for n in range(10)])
    assert judged(group_runs(few)[0]).verdict == "reproduced"
    assert judged(group_runs(many)[0]).verdict == "short"


@pytest.mark.parametrize(
    ("n", "printed", "factor"),
    [(1, True, 1), (2, True, 1), (8, True, 0.625**0.5), (10**9, True, 0.5**0.5), (9, False, 1)],
)
def test_the_tolerance_of_a_mean(n, printed, factor):
    assert tolerance_factor(n, spread_is_printed=printed) == pytest.approx(factor)


def test_one_seed_is_judged_as_in_its_own_report(seeds):
    for top1 in (76.5, 76.56, 76.8, 77.2, 77.21):
        (run,) = seeds(top1)
        own = {(e.id, e.figure, e.published): e.verdict for e in run.report.published}
        (group,) = group_runs([run])
        assert {(e.id, e.figure, e.published): e.verdict for e in group.published} == own


def test_the_mean_is_not_comparable_if_one_run_is_not(seeds, record_run, run_results):
    results = run_results()
    results["train"]["epochs"] = 45
    short = read_run(record_run("half", seed=9, results=results))
    (group,) = group_runs([*seeds(76.8, 76.9), short])
    entry = judged(group)
    assert entry.verdict == "not-comparable" and entry.tolerance is None
    assert entry.why.startswith("half: stopped after 45 of 90 epochs")
    assert judged(group, "train_images_per_s").verdict == "reproduced"


def test_a_repeated_seed_is_one_sample_of_accuracy_and_two_of_speed(record_run, run_results):
    top1s = ((0, 76.8), (0, 76.9), (1, 77.0))
    runs = [
        read_run(record_run(f"run-{n}", seed=seed, results=run_results(8000 + n, top1)))
        for n, (seed, top1) in enumerate(top1s)
    ]
    (group,) = group_runs(runs)
    assert group.figures["top1"].n == 2
    assert group.figures["top1"].mean == pytest.approx((76.85 + 77.0) / 2)
    assert group.figures["train_images_per_s"].n == 3
    assert group.warnings == (
        "seed 0 was run 2 times (run-0, run-1): one seed in the accuracy, as their mean",
    )
    assert judged(group).n == 2


def test_repeated_benchmarks_are_not_warned_about(record_run, run_results):
    runs = [
        read_run(record_run(f"run-{n}", mode="benchmark_training", results=run_results(8000.0 + n)))
        for n in range(3)
    ]
    (group,) = group_runs(runs)
    assert group.warnings == () and group.figures["train_images_per_s"].std == 1.0


def test_a_figure_that_some_runs_lack_is_a_warning(seeds, record_run, run_results):
    results = run_results()
    del results["train"]["data_wait_fraction"]
    lacking = read_run(record_run("lacking", seed=7, results=results))
    (group,) = group_runs([*seeds(76.8, 76.9), lacking])
    assert group.figures["data_wait_fraction"].n == 2
    assert group.warnings == ("data_wait_fraction is measured in 2 of 3 runs",)


def test_repeats_of_a_seed_are_averaged():
    assert spread([(0, 1.0), (0, 3.0), (1, 5.0)], by_seed=True).mean == 3.5
    assert spread([(0, 1.0), (0, 3.0), (1, 5.0)], by_seed=False).mean == 3.0


def test_runs_are_grouped_by_name(seeds, record_run):
    other = read_run(record_run("fp32", precision="FP32"))
    groups = group_runs([*seeds(76.8, 76.9), other])
    assert [group.identity.text for group in groups] == [
        "resnet50 AMP convergence DGX1V 90e, 8 devices",
        "resnet50 FP32 convergence DGX1V 90e, 8 devices",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optim__lr": 1.0}, r"\(optim.lr 2.048 -> 1\): combine them"),
        ({"data__workers": 3, "optim__lr": 1.0}, r"data.workers \d+ -> 3; optim.lr 2.048 -> 1"),
        ({"data__path": "demo"}, "data set a folder -> demo"),
    ],
)
def test_runs_with_different_settings_are_refused(seeds, record_run, options, words):
    other = read_run(record_run("other", seed=5, **options))
    with pytest.raises(WorkspaceError, match=words) as caught:
        group_runs([*seeds(76.8), other])
    assert "or --ignore a setting" in caught.value.message


def test_settings_without_effect_on_figures_may_differ(seeds, record_run):
    other = record_run(
        "other", seed=5, data__path="/mnt/imagenet", run__log_every_steps=7, run__workspace="x"
    )
    (group,) = group_runs([*seeds(76.8), read_run(other)])
    assert len(group.runs) == 2


def test_a_setting_may_be_ignored(seeds, record_run):
    other = read_run(record_run("other", seed=5, data__workers=3))
    (group,) = group_runs([*seeds(76.8), other], check_ignored(["data.workers"]))
    assert len(group.runs) == 2
    with pytest.raises(ConfigError, match=r"--ignore: unknown key 'data.worker'; did you mean"):
        check_ignored(["data.worker"])


def test_a_newer_setting_counts_as_its_default(seeds):
    one, other = seeds(76.8, 76.9)
    del other.report.config["data"]["antialias"]
    assert differences(one, other) == []
    other.report.config["data"]["antialias"] = False
    assert differences(one, other) == ["data.antialias True -> False"]


def with_results(run, **changes):
    results = replace(run.report.results, **changes)
    return replace(run, report=replace(run.report, results=results))


def test_another_number_of_validation_images_is_a_difference(seeds):
    one, other = seeds(76.8, 76.9)
    validation = replace(other.report.results.validation, images=360)
    assert differences(one, with_results(other, validation=validation)) == [
        "validation images 50,000 -> 360"
    ]


def test_settings_changed_midway_are_a_difference(seeds):
    one, other = seeds(76.8, 76.9)
    start = StartResults(step=625, world_size=8, resumed_from="x", changes=("optim.lr 2 -> 1",))
    assert differences(one, with_results(other, starts=(start,))) == [
        "settings changed midway: none -> optim.lr 2 -> 1 at step 625"
    ]
    # Continued without changes, a run is still the same.
    same = with_results(other, starts=(replace(start, changes=()),))
    assert differences(one, same) == []


def test_a_run_that_ended_early_and_a_report_given_twice_are_refused(seeds, record_run):
    runs = seeds(76.8, 76.9)
    with pytest.raises(WorkspaceError, match="are the same report: give each run once"):
        group_runs([*runs, runs[0]])
    failed = record_run("failed", seed=4, results={}, exit_code=3, exit_message="loss is nan")
    with pytest.raises(WorkspaceError, match=r"ended early, status 'diverged' \(loss is nan\)"):
        group_runs([*runs, read_run(failed)])
