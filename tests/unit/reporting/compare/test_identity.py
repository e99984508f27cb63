from dataclasses import replace

import pytest

from image_classification.reporting.compare.identity import differences
from image_classification.reporting.report import StartResults


@pytest.fixture
def two(recorded):
    return recorded("one", seed=0), recorded("other", seed=1)


def with_results(run, **changes):
    results = replace(run.report.results, **changes)
    return replace(run, report=replace(run.report, results=results))


def test_settings_without_effect_on_figures_may_differ(recorded):
    changes = {"data__path": "/mnt", "run__log_every_steps": 7, "run__workspace": "x"}
    assert differences(recorded("one"), recorded("other", seed=5, **changes)) == []


def test_a_setting_that_a_report_lacks_has_its_default(two):
    one, other = two
    del other.report.config["data"]["antialias"]
    assert differences(one, other) == []
    other.report.config["data"]["antialias"] = False
    assert differences(one, other) == ["data.antialias True -> False"]


def test_another_number_of_validation_images_is_a_difference(two):
    one, other = two
    validation = replace(other.report.results.validation, images=360)
    assert differences(one, with_results(other, validation=validation)) == [
        "validation images 50,000 -> 360"
    ]


def test_settings_changed_midway_are_a_difference(two):
    one, other = two
    start = StartResults(step=625, world_size=8, resumed_from="x", changes=("optim.lr 2 -> 1",))
    assert differences(one, with_results(other, starts=(start,))) == [
        "settings changed midway: none -> optim.lr 2 -> 1 at step 625"
    ]
    # Continued without changes, a run is still the same.
    unchanged = with_results(other, starts=(replace(start, changes=()),))
    assert differences(one, unchanged) == []


def test_other_validation_images_of_the_same_number_are_a_difference(two):
    one, other = (with_results(run, validation_set=run.label) for run in two)
    assert differences(one, other) == ["other validation images (one -> other)"]
    assert differences(one, other, ["data.path"]) == []
    # A report of an earlier release does not say.
    assert differences(two[0], other) == []


def test_evaluations_of_other_weights_are_different_only_where_asked(recorded):
    def evaluated(name, digest, **settings):
        run = recorded(name, mode="evaluate", run__resume=f"runs/{name}", **settings)
        return with_results(run, weights_sha256=digest)

    one, other = evaluated("one", "a" * 64), evaluated("other", "b" * 64)
    assert differences(one, other) == []
    changed = f"weights sha256 {'a' * 12} -> sha256 {'b' * 12}"
    assert differences(one, other, weights=True) == [changed]
    # The same weights in another place.
    moved = evaluated("moved", "a" * 64, run__checkpoint_name="x")
    assert differences(one, moved, weights=True) == []
    # Without hashes, the path decides.
    old, older = evaluated("old", None), evaluated("older", None)
    assert differences(old, older, weights=True) == ["weights runs/old -> runs/older"]
    one, other = (with_results(recorded(name), weights_sha256=name) for name in "ab")
    assert differences(one, other, weights=True) == []
