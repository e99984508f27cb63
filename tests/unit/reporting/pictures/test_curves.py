import json
import math

import pytest

from image_classification.reporting.pictures.curves import MAX_POINTS, thinned
from image_classification.reporting.pictures.picture import LeftOut, Picture
from tests.support import runs as made
from tests.support.pictures import drawn, drawn_names, planned, series_of, why_left_out
from tests.support.runs import TRAINING_PICTURES, Writer


def test_a_training_run_has_only_the_pictures_of_its_mode(trained):
    assert [*planned(trained())] == drawn_names(planned(trained())) == TRAINING_PICTURES
    speed = trained("b", {"names": {"mode": "benchmark_training"}})
    assert [*planned(speed)] == ["throughput", "over_time", "step_time"]
    evaluation = {"names": {"mode": "evaluate"}, "data": {"path": "demo"}}
    assert planned(trained("e", evaluation)) == {}


def test_pictures_of_several_runs_and_reasons_for_those_left_out(trained):
    pictures = planned(trained("a"), trained("b"))
    assert drawn_names(pictures) == TRAINING_PICTURES
    left_out = {name: each.why for name, each in pictures.items() if isinstance(each, LeftOut)}
    assert left_out == {
        "latency": "no inference was measured",
        "scaling": "it needs training runs of one model, precision and device with different "
        "numbers of devices",
    }


def test_curves_have_the_recorded_values_over_epochs(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, steps_per_epoch=4)
        writer.add("step", 2, 0, loss=3.0, lr=0.5)
        writer.add("step", 3, 0, loss=math.nan, lr=0.25)
        writer.add("validation", 4, 0, top1=30.0, top5=60.0, loss=2.0)
        writer.add("validation_ema", 4, 0, top1=35.0, loss=1.5)
    pictures = planned(tmp_path)
    assert drawn_names(pictures) == ["loss", "accuracy", "learning_rate"]
    loss = series_of(drawn("loss", tmp_path))
    training, averaged = loss["training loss"], loss["validation cross-entropy, EMA"]
    assert (training.x, training.y) == ((0.5,), (3.0,))
    assert (averaged.x, averaged.y) == ((1.0,), (1.5,))
    assert series_of(drawn("learning_rate", tmp_path))["learning rate"].y == (0.5, 0.25)
    top1, top5 = (series_of(drawn("accuracy", tmp_path), panel) for panel in (0, 1))
    assert top1["EMA of the weights"].y == (35.0,)
    assert top5["weights as trained"].y == (60.0,)
    assert "EMA of the weights" not in top5


def test_published_value_is_a_band_only_for_a_comparable_run(trained):
    accuracy = drawn("accuracy", trained("comparable", epochs=90))
    whole, close_up = accuracy.panels[:2]
    assert [(round(band.low, 2), round(band.high, 2)) for band in whole.bands] == [(76.56, 77.2)]
    assert close_up.bands == whole.bands
    low, high = close_up.y_limits or (0, 0)
    assert high is not None and low < 76.56 < 77.2 < high
    assert "published 76.88 ± 0.32" in accuracy.alt

    demo = trained("demo", {"data": {"path": "demo"}})
    assert [panel.bands for panel in drawn("accuracy", demo).panels] == [(), ()]
    assert not drawn("throughput", demo).panels[0].bands


def test_resumed_run_has_a_line_and_a_gap_in_time(trained):
    run = trained(resumed_after=2)
    lines = drawn("loss", run).panels[0].lines
    assert [(line.label, line.x) for line in lines] == [("resumed", 2.0)]
    over_time = drawn("over_time", run).panels[0]
    assert [line.label for line in over_time.lines] == ["restarted"]
    gap = [x for x, y in zip(over_time.series[0].x, over_time.series[0].y, strict=True) if y != y]
    assert gap == [over_time.lines[0].x]


def test_power_has_a_panel_or_a_note_that_it_is_missing(trained):
    measured = drawn("over_time", trained("with"))
    assert [panel.y_label for panel in measured.panels] == ["images/s", "power, W"]
    assert 1900 < sum(measured.panels[1].series[0].y) / 16 < 2200
    without = drawn("over_time", trained("without", telemetry=False))
    assert [panel.y_label for panel in without.panels] == ["images/s"]
    assert without.notes == ("power: not measured.",)


def test_validations_and_saves_are_marked_over_time(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, steps_per_epoch=2)
        for step in (1, 2):
            writer.now_s += 10
            writer.add("step", step, 0, images_per_s=100.0)
        writer.now_s += 8
        writer.add("validation", 2, 0, top1=1.0, time_s=5.0)
        writer.add("validation_ema", 2, 0, top1=1.0, time_s=3.0)
        writer.now_s += 2
        writer.add("checkpoint", 2, 0, time_s=1.5)
    panel = drawn("over_time", tmp_path).panels[0]
    found = {spans.label: spans.ranges for spans in panel.spans}
    assert found == {"validation": ((20.0, 28.0),), "save": ((28.5, 30.0),)}
    assert (panel.series[0].x, panel.series[0].y) == ((10.0, 20.0), (100.0, 100.0))


def test_few_speeds_of_telemetry_give_way_to_those_of_the_steps(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, steps_per_epoch=4)
        for step in range(1, 5):
            writer.now_s += 1
            nothing = {"span_s": 1.0, "images_per_s": 50.0 if step == 2 else None}
            writer.add("telemetry", step, 0, unix_time_s=writer.now_s, **nothing)
            writer.add("step", step, 0, images_per_s=100.0)
    assert drawn("over_time", tmp_path).panels[0].series[0].y == (100.0,) * 4


def test_a_first_spike_does_not_set_the_axis_of_the_loss(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, steps_per_epoch=4)
        for step in range(1, 13):
            writer.add("step", step, 0, loss=2.4 - 0.1 * step)
            if step % 4 == 0:
                writer.add("validation", step, 0, loss=8.5 if step == 4 else 1.5)
    picture = drawn("loss", tmp_path)
    low, high = picture.panels[0].y_limits or (0, 0)
    assert high is not None and 1.1 < low < 1.2 < 2.2 < high < 2.6
    assert picture.panels[0].marks_clipped
    assert picture.notes == ("Triangles mark values above the axis: 1, up to 8.5.",)


def test_a_loss_that_falls_steadily_is_shown_whole(trained):
    panel = drawn("loss", trained(epochs=10)).panels[0]
    assert panel.y_limits is None and not panel.marks_clipped


def test_over_time_is_left_out_without_speed_and_power(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, start_step=0)
        nothing = {"images_per_s": None, "power_w": None}
        writer.add("telemetry", 0, 0, unix_time_s=made.BEGIN_S + 1, span_s=1.0, **nothing)
    assert "has a time" in why_left_out("over_time", tmp_path)


def test_time_unit_follows_the_length_of_the_run(trained):
    assert drawn("over_time", trained("a")).x_label == "time since the start, s"
    hours = drawn("over_time", trained("b", epochs=90, steps_per_epoch=625, print_every=625))
    assert hours.x_label == "time since the start, h"
    assert 3.5 < hours.panels[0].series[0].x[-1] < 5


def test_single_steps_and_their_percentiles_come_from_the_report(trained):
    run = trained(epochs=20)
    train = json.loads((run / "report.json").read_text())["results"]["train"]
    counts = {"low_s": 0.2, "high_s": 0.3, "counts": [6, 3, 1], "longest_s": 0.9}
    times = {"p50": 0.22, "p95": 0.29, "p99": 0.8, "histogram": counts}
    made.change_report(run, "results", train=train | {"step_time_s": times})
    picture = drawn("step_time", run)
    (bars,) = picture.panels[0].bars
    assert (picture.x_label, bars.label) == ("time of a single step, ms", "single steps")
    assert bars.edges == pytest.approx((200, 233.3, 266.7, 300), abs=0.1)
    assert bars.heights == (60, 30, 10)
    assert [line.label for line in picture.panels[0].lines] == ["p50, 220.0 ms", "p95, 290.0 ms"]
    assert picture.notes == (
        "10 single steps; the first steps are left out, as in the speed.",
        "The last bar includes longer times: up to 900.0 ms.",
        "p99, 800.0 ms: outside the picture.",
    )


def test_without_single_steps_the_percentiles_are_those_of_the_recorded_means(trained):
    picture = drawn("step_time", trained(epochs=20))
    panel = picture.panels[0]
    assert picture.x_label == "step time, ms (means of 5 steps)"
    assert panel.bars[0].label == "means of 5 steps"
    assert sum(panel.bars[0].heights) == pytest.approx(100)
    p50, p95, p99 = (line.x for line in panel.lines)
    assert panel.bars[0].edges[0] < p50 < p95 < p99 < panel.bars[0].edges[-1]
    single = drawn("step_time", trained("single", print_every=1))
    assert single.x_label == "step time, ms (single steps)"


def test_a_very_long_step_is_counted_in_the_last_bar(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 101):
            writer.add("step", step, 0, step_time_s=9.0 if step == 50 else 0.2 + 0.0001 * step)
    picture = drawn("step_time", tmp_path)
    bars = picture.panels[0].bars[0]
    assert bars.edges[-1] == pytest.approx(3 * 205.1, abs=2)
    assert bars.heights[-1] == pytest.approx(1)
    assert picture.notes == ("The last bar includes longer times: 1, up to 9,000.0 ms.",)


def test_equal_and_few_step_times(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (1, 2):
            writer.add("step", step, 0, step_time_s=0.2)
    assert why_left_out("step_time", tmp_path) == "fewer than 3 step times were recorded"
    with Writer(tmp_path, append=True) as writer:
        writer.add("step", 3, 0, step_time_s=0.2)
    assert sum(drawn("step_time", tmp_path).panels[0].bars[0].heights) == pytest.approx(100)


def test_several_runs_differ_without_color(trained):
    runs = [trained(f"s{seed}", {"run": {"seed": seed}}, noise_seed=seed) for seed in (1, 2, 3)]
    pictures = planned(*runs)
    assert drawn_names(pictures) == TRAINING_PICTURES
    assert [label for label, _ in drawn("loss", *runs).entries] == [
        "seed 1",
        "seed 2",
        "seed 3",
        "training loss (label smoothing 0.1)",
        "validation cross-entropy",
        "validation cross-entropy, EMA",
    ]
    for picture in pictures.values():
        if isinstance(picture, Picture):
            looks = {
                (each.label, each.look.line, each.look.marker, each.look.filled)
                for each in picture.panels[0].series
                if each.label
            }
            assert len({look[1:] for look in looks}) == len(looks), picture.name
    lines = [bars.look.line for bars in drawn("step_time", *runs).panels[0].bars]
    assert len(set(lines)) == 3


def test_equal_runs_are_labeled_by_their_folders(trained):
    bars = drawn("step_time", trained("a"), trained("b")).panels[0].bars
    assert [each.label for each in bars] == ["a", "b"]


def test_a_run_without_the_quantity_is_named_in_a_note(trained, tmp_path):
    with Writer(tmp_path / "killed") as writer:
        writer.add("start", 0, 0, steps_per_epoch=20)
        writer.add("step", 5, 0, loss=5.0)
    notes = drawn("accuracy", trained("whole"), tmp_path / "killed").notes
    assert any(note.endswith("no validation was recorded.") for note in notes)


def test_the_training_loss_says_how_its_labels_were_changed(trained):
    plain = trained("plain", {"loss": {"label_smoothing": 0.0}})
    mixed = trained("mixed", {"mixing": {"mixup": 0.2}})
    assert "training cross-entropy" in series_of(drawn("loss", plain))
    assert "training loss (label smoothing 0.1, mixup 0.2)" in series_of(drawn("loss", mixed))
    assert "training loss" in {label for label, _ in drawn("loss", plain, mixed).entries}


def test_long_curves_are_thinned_with_a_note(trained, monkeypatch):
    monkeypatch.setattr("image_classification.reporting.pictures.curves.MAX_POINTS", 50)
    picture = drawn("loss", trained(epochs=10, steps_per_epoch=100, print_every=5))
    training = series_of(picture)["training loss (label smoothing 0.1)"]
    assert len(training.x) <= 50
    assert training.x[-1] == pytest.approx(10, abs=0.1)
    assert picture.notes == ("Long curves are drawn as means of up to 4 records.",)


def test_thinning_keeps_gaps_and_means():
    points = [(float(x), 2.0 * x if x != 2 else math.nan) for x in range(3 * MAX_POINTS)]
    kept, size = thinned(points)
    assert size == 3
    assert kept[0] == (0.5, 1.0) and kept[1][0] == 2.0 and math.isnan(kept[1][1])
    assert kept[2] == (4.0, 8.0)
    assert len(kept) <= MAX_POINTS + 2
    assert thinned(points[:10]) == (points[:10], 1)
