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
