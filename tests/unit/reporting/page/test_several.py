"""The pages of a comparison and of a history."""

from __future__ import annotations

import re

import pytest

from image_classification.reporting.compare.history import read_history
from image_classification.reporting.compare.regression import (
    Change,
    compare_folders,
    compare_runs,
)
from image_classification.reporting.page.several import change_chart, compare_page, history_page
from image_classification.reporting.run_folder import read_run


def center(change: Change) -> float:
    (place,) = re.findall('cx="([0-9.]+)"', change_chart(change))
    return float(place)


@pytest.mark.parametrize(
    ("figure", "old", "new", "percent", "is_better"),
    [
        ("train_images_per_s", 100.0, 96.0, -4.0, False),
        ("train_images_per_s", 100.0, 104.0, 4.0, True),
        ("latency_ms_p50_batch_1", 100.0, 104.0, 4.0, False),
    ],
)
def test_better_is_on_the_right(figure, old, new, percent, is_better):
    change = Change(figure, old, new, percent, "percent", 5.0, "ok")
    assert center(change) == pytest.approx(100 + (1 if is_better else -1) * 32 * 0.8)


def test_error_bar_and_changes_beyond_the_axis():
    change = Change("top1", 76.0, 76.2, 0.2, "points", 0.2, "ok", 0.1, 2.0)
    assert 'x1="100.0" x2="164.0"' in change_chart(change)
    far = Change("top1", 76.0, 60.0, -16.0, "points", 0.2, "regressed", 0.1, -160.0)
    assert "<circle" not in change_chart(far) and "<path" in change_chart(far)
    assert change_chart(Change("top1", None, 1.0, None, "points", 0.2, "not measured")) == ""
    exact = change_chart(Change("top1", 1.0, 2.0, 1.0, "points", 0.0, "improved"))
    assert "<circle" in exact and 'width="0.0"' in exact  # nothing is within a threshold of 0


def test_page_of_two_runs(record_run, run_results):
    old = read_run(record_run("a<b", results=run_results(8300.0)))
    new = read_run(record_run("new", results=run_results(7000.0), environment={"torch": "3.0"}))
    page = compare_page(compare_runs(old, new))
    for text in ("Regressed: training speed", "-15.7 %", "a&lt;b", "3.0", 'class="mark regressed"'):
        assert text in page
    assert page.count('<svg class="change') == 3
    same = compare_page(compare_runs(old, read_run(record_run("same"))))
    assert "No figure regressed." in same


def test_page_of_two_folders(record_run, run_results, tmp_path):
    record_run("old/a")
    record_run("new/a", results=run_results(7000.0))
    record_run("new/b", model="resnext101-32x4d")
    page = compare_page(compare_folders(tmp_path / "old", tmp_path / "new"))
    assert "Regressed: resnet50" in page and "only in" in page


def test_page_of_a_history(record_run, run_results, tmp_path):
    for day, speed in enumerate((8300.0, 8310.0, 7000.0), start=1):
        record_run(f"run-{day}", ended_at=day, results=run_results(speed))
    record_run("other", model="resnext101-32x4d")
    page = history_page(read_history(tmp_path))
    assert "The newest run has regressed: resnet50" in page
    assert "run-3, training speed: -15.8 %" in page
    assert page.count("data-chart='") == 1
    assert "resnext101-32x4d AMP" in page
