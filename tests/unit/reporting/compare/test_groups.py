import statistics

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.compare.groups import group_runs, spread
from image_classification.reporting.published.verdict import tolerance_factor

PUBLISHED = "nvidia-resnet50-dgx1v-amp-90e"


@pytest.fixture
def seeds(recorded):
    """Runs of one name: one for each top-1, with seeds 0, 1, …"""

    def make(*top1):
        return [
            recorded(f"seed-{seed}-{value}", 8300.0 + seed, value, seed=seed)
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
    assert (top1.n, top1.min, top1.max) == (3, 76.7, 77.0)
    assert group.figures["train_images_per_s"].mean == 8301.0
    assert list(group.warnings) == []


def test_the_mean_is_judged(seeds):
    # Published: 76.88 +- 0.16. One of the runs alone would be below, the mean is not.
    runs = seeds(76.5, 77.0, 76.9)
    alone = {(e.id, e.figure): e.verdict for e in runs[0].report.published}
    assert alone[PUBLISHED, "top1"] == "below"
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
    assert judged(group_runs(many)[0]).verdict == "below"


@pytest.mark.parametrize(
    ("n", "printed", "factor"),
    [(1, True, 1), (2, True, 1), (8, True, 0.625**0.5), (10**9, True, 0.5**0.5), (9, False, 1)],
)
def test_tolerance_of_a_mean(n, printed, factor):
    assert tolerance_factor(n, spread_is_printed=printed) == pytest.approx(factor)


@pytest.mark.parametrize("top1", [76.5, 76.56, 76.8, 77.2, 77.21])
def test_one_seed_is_judged_as_in_its_own_report(recorded, top1):
    run = recorded("run", top1=top1)
    own = {(e.id, e.figure, e.published): e.verdict for e in run.report.published}
    (group,) = group_runs([run])
    assert {(e.id, e.figure, e.published): e.verdict for e in group.published} == own
    assert group.figures["top1"].std is None and group.figures["top1"].n == 1


def test_the_mean_is_not_comparable_if_one_run_is_not(seeds, recorded, run_results):
    results = run_results()
    results["train"]["epochs"] = 45
    (group,) = group_runs([*seeds(76.8, 76.9), recorded("half", seed=9, results=results)])
    entry = judged(group)
    assert entry.verdict == "not-comparable" and entry.tolerance is None
    assert entry.why.startswith("half: stopped after 45 of 90 epochs")
    assert judged(group, "train_images_per_s").verdict == "reproduced"


def test_a_repeated_seed_is_one_sample_of_accuracy_and_two_of_speed(recorded):
    top1s = ((0, 76.8), (0, 76.9), (1, 77.0))
    runs = [recorded(f"run-{n}", 8000 + n, top1, seed=s) for n, (s, top1) in enumerate(top1s)]
    (group,) = group_runs(runs)
    assert group.figures["top1"].n == 2
    assert group.figures["top1"].mean == pytest.approx((76.85 + 77.0) / 2)
    assert group.figures["train_images_per_s"].n == 3
    assert list(group.warnings) == [
        "seed 0 was run 2 times (run-0, run-1): one seed in the accuracy, as their mean",
    ]
    assert judged(group).n == 2


def test_repeats_of_a_seed_are_averaged():
    samples = [(0, 1.0), (0, 3.0), (1, 5.0)]
    assert spread(samples, by_seed=True).mean == 3.5
    assert spread(samples, by_seed=False).mean == 3.0


def test_repeated_benchmarks_are_not_warned_about(recorded):
    runs = [recorded(f"run-{n}", 8000.0 + n, mode="benchmark_training") for n in range(3)]
    (group,) = group_runs(runs)
    assert not group.warnings and group.figures["train_images_per_s"].std == 1.0


def test_a_figure_that_some_runs_lack_is_a_warning(seeds, recorded, run_results):
    results = run_results()
    del results["train"]["data_wait_fraction"]
    (group,) = group_runs([*seeds(76.8, 76.9), recorded("lacking", seed=7, results=results)])
    assert group.figures["data_wait_fraction"].n == 2
    assert list(group.warnings) == ["data_wait_fraction is measured in 2 of 3 runs"]


def test_runs_are_grouped_by_name(seeds, recorded):
    groups = group_runs([*seeds(76.8, 76.9), recorded("fp32", precision="FP32")])
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
def test_runs_with_different_settings_are_refused(seeds, recorded, options, words):
    with pytest.raises(WorkspaceError, match=words) as caught:
        group_runs([*seeds(76.8), recorded("other", seed=5, **options)])
    assert "or --ignore a setting" in caught.value.message


def test_ignored_settings_may_differ(seeds, recorded):
    other = recorded("other", seed=5, data__workers=3)
    (group,) = group_runs([*seeds(76.8), other], ["data.workers"])
    assert len(group.runs) == 2


def test_a_run_that_ended_early_and_a_report_given_twice_are_refused(seeds, recorded):
    runs = seeds(76.8, 76.9)
    with pytest.raises(WorkspaceError, match="are the same report: give each run once"):
        group_runs([*runs, runs[0]])
    failed = recorded("failed", seed=4, results={}, exit_code=3, exit_message="loss is nan")
    with pytest.raises(WorkspaceError, match=r"ended early, status 'diverged' \(loss is nan\)"):
        group_runs([*runs, failed])
