import math

import pytest

from image_classification.reporting.pictures.draw import plan
from image_classification.reporting.pictures.picture import MOST_POINTS, LeftOut, Picture, thinned
from image_classification.reporting.pictures.source import read_run
from tests.support import runs as made
from tests.support.runs import TRAINING_PICTURES, Writer, write_inference


def planned(*folders):
    return {each.name: each for each in plan([read_run(folder) for folder in folders])}


def drawn_names(pictures):
    return [name for name, each in pictures.items() if isinstance(each, Picture)]


def series_of(picture, panel=0):
    return {series.label: series for series in picture.panels[panel].series if series.label}


def test_a_training_run_has_its_pictures_and_says_what_it_has_not(trained):
    pictures = planned(trained())
    assert drawn_names(pictures) == TRAINING_PICTURES
    left_out = {name: each.why for name, each in pictures.items() if isinstance(each, LeftOut)}
    assert left_out == {
        "latency": "no inference was measured",
        "scaling": "it takes training runs of one model, precision and device with several numbers "
        "of devices",
    }


def test_curves_hold_the_measured_points_over_epochs(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, steps_per_epoch=4)
        writer.add("step", 2, 0, loss=3.0, lr=0.5)
        writer.add("step", 3, 0, loss=math.nan, lr=0.25)
        writer.add("validation", 4, 0, top1=30.0, top5=60.0, loss=2.0)
        writer.add("validation_ema", 4, 0, top1=35.0, loss=1.5)
    pictures = planned(tmp_path)
    assert drawn_names(pictures) == ["loss", "accuracy", "learning_rate"]
    loss = series_of(pictures["loss"])
    assert (loss["training"].x, loss["training"].y) == ((0.5,), (3.0,))
    assert (loss["validation, EMA"].x, loss["validation, EMA"].y) == ((1.0,), (1.5,))
    assert series_of(pictures["learning_rate"])["learning rate"].y == (0.5, 0.25)
    top1, top5 = (series_of(pictures["accuracy"], panel) for panel in (0, 1))
    assert top1["EMA of the weights"].y == (35.0,)
    assert top5["weights as trained"].y == (60.0,)
    assert "EMA of the weights" not in top5


def test_published_values_of_a_comparable_run_are_bands(trained):
    accuracy = planned(trained(epochs=90))["accuracy"]
    whole, close_up = accuracy.panels[:2]
    assert [(round(band.low, 2), round(band.high, 2)) for band in whole.bands] == [(76.56, 77.2)]
    assert close_up.bands == whole.bands
    assert close_up.y_limits[0] < 76.56 < 77.2 < close_up.y_limits[1]
    assert "published 76.88 ± 0.32" in accuracy.alt


def test_a_run_that_is_not_comparable_has_no_band(trained):
    pictures = planned(trained(changes={"data": {"path": "demo"}}))
    assert not any(panel.bands for panel in pictures["accuracy"].panels)
    assert len(pictures["accuracy"].panels) == 2
    assert not pictures["throughput"].panels[0].bands


def test_a_resumed_run_is_marked_and_has_a_gap_in_time(trained):
    pictures = planned(trained(resumed_after=2))
    assert [(rule.label, rule.x) for rule in pictures["loss"].panels[0].rules] == [("resumed", 2.0)]
    over_time = pictures["over_time"].panels[0]
    assert [rule.label for rule in over_time.rules] == ["started again"]
    gap = [x for x, y in zip(over_time.series[0].x, over_time.series[0].y, strict=True) if y != y]
    assert gap == [over_time.rules[0].x]


def test_power_has_its_own_axes_and_where_there_is_none_a_note(trained):
    measured = planned(trained("with"))["over_time"]
    assert [panel.y_label for panel in measured.panels] == ["images/s", "power, W"]
    assert 1900 < sum(measured.panels[1].series[0].y) / 16 < 2200
    without = planned(trained("without", telemetry=False))["over_time"]
    assert [panel.y_label for panel in without.panels] == ["images/s"]
    assert without.notes == ("power: not measured.",)


def test_telemetry_without_speed_or_power_draws_nothing(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, start_step=0)
        nothing = {"images_per_s": None, "power_w": None}
        writer.add("telemetry", 0, 0, unix_time_s=made.BEGIN_S + 1, span_s=1.0, **nothing)
    assert isinstance(planned(tmp_path)["over_time"], LeftOut)


def test_time_is_in_a_unit_that_fits(trained):
    assert planned(trained("a"))["over_time"].x_label == "time since the start, s"
    hours = planned(trained("b", epochs=90, steps_per_epoch=625, print_every=625))["over_time"]
    assert hours.x_label == "time since the start, h"
    assert 3.5 < hours.panels[0].series[0].x[-1] < 5


def test_step_times_are_a_histogram_that_says_what_a_record_is(trained):
    picture = planned(trained(epochs=20))["step_time"]
    panel = picture.panels[0]
    assert picture.x_label == "step time, ms (means of 5 steps each)"
    assert sum(panel.bars[0].heights) == pytest.approx(100)
    assert [rule.label[:3] for rule in panel.rules] == ["p50", "p95", "p99"]
    single = planned(trained("single", print_every=1))["step_time"]
    assert single.x_label == "step time, ms (single steps)"


def test_a_step_that_hung_does_not_squeeze_the_others_into_one_bar(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 101):
            writer.add("step", step, 0, step_time_s=9.0 if step == 50 else 0.2 + 0.0001 * step)
    picture = planned(tmp_path)["step_time"]
    bars = picture.panels[0].bars[0]
    assert bars.edges[-1] == pytest.approx(3 * 205.1, abs=2)
    assert bars.heights[-1] == pytest.approx(1)
    assert picture.notes == ("The last bar also counts 1 beyond it, the longest 9,000.0 ms.",)


def test_equal_and_few_step_times(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (1, 2):
            writer.add("step", step, 0, step_time_s=0.2)
    assert planned(tmp_path)["step_time"].why == "fewer than 3 step times were recorded"
    with Writer(tmp_path, append=True) as writer:
        writer.add("step", 3, 0, step_time_s=0.2)
    assert sum(planned(tmp_path)["step_time"].panels[0].bars[0].heights) == pytest.approx(100)


def test_latency_stands_beside_the_published_table_of_its_platform(tmp_path, make_config):
    run = write_inference(tmp_path / "amp", make_config())
    picture = planned(run)["latency"]
    series = series_of(picture)
    assert list(series) == [
        "measured, mean",
        "measured, p99",
        "published, DGX-1 V100 16GB, mean",
    ]
    mean = series["measured, mean"]
    assert (mean.names[0], mean.y[0]) == ("1", pytest.approx(6.7))
    assert series["measured, p99"].y[0] == pytest.approx(1.2 * 6.7)
    assert len(series["published, DGX-1 V100 16GB, mean"].x) >= 8
    assert drawn_names(planned(run)) == ["latency"]


def test_latency_without_a_publication_says_so(tmp_path, make_config):
    config = make_config(names={"model": "resnet18"}, model={"name": "resnet18"})
    picture = planned(write_inference(tmp_path / "r", config))["latency"]
    assert picture.notes[-1] == "No latency is published of resnet18 at AMP."


def test_models_are_told_apart_in_latency(tmp_path, make_config):
    runs = [
        write_inference(tmp_path / name, make_config(names={"precision": name}), scale=scale)
        for name, scale in (("AMP", 1.0), ("FP32", 2.4))
    ]
    labels = set(series_of(planned(*runs)["latency"]))
    assert {"AMP, mean", "FP32, mean"} <= labels
    assert {
        "published, AMP DGX-1 V100 16GB, mean",
        "published, FP32 DGX-1 V100 16GB, mean",
    } <= labels


def test_accuracy_against_cost_has_every_published_model_and_this_run(trained):
    picture = planned(trained(epochs=90))["accuracy_cost"]
    series = series_of(picture)
    run = series["this run: resnet50"]
    assert (run.x, run.y) == ((4.089184256,), (76.8,))
    names = {name for each in series.values() for name in each.names if name}
    assert {"resnet50", "resnext101-32x4d", "se-resnext101-32x4d"} <= names
    short = series["published, up to 100 epochs"]
    at = short.x.index(4.089184256)
    assert 76.5 < short.y[at] < 77.3
    assert max(short.areas) > min(short.areas)


def test_accuracy_of_another_data_set_is_not_among_imagenets(trained):
    why = "its data set is not ImageNet, whose accuracy the others are"
    demo = planned(trained("demo", {"data": {"path": "demo"}}))["accuracy_cost"]
    assert demo.why == why
    ten = planned(trained("ten", {"model": {"num_classes": 10}}))["accuracy_cost"]
    assert ten.why == why
    odd = planned(trained("odd", {"data": {"image_size": 200}}))["accuracy_cost"]
    assert odd.why == "the multiply-adds of resnet50 at 200 pixels are not known"


def test_seeds_are_overlaid_and_told_apart_in_black_and_white(trained):
    runs = [trained(f"s{seed}", {"run": {"seed": seed}}, noise_seed=seed) for seed in (1, 2, 3)]
    pictures = planned(*runs)
    assert drawn_names(pictures) == TRAINING_PICTURES
    assert [label for label, _ in pictures["loss"].entries] == [
        "seed 1",
        "seed 2",
        "seed 3",
        "training",
        "validation",
        "validation, EMA",
    ]
    for picture in pictures.values():
        if isinstance(picture, Picture):
            looks = {
                (each.label, each.look.line, each.look.marker, each.look.filled)
                for each in picture.panels[0].series
                if each.label
            }
            assert len({look[1:] for look in looks}) == len(looks), picture.name
    lines = [bars.look.line for bars in pictures["step_time"].panels[0].bars]
    assert len(set(lines)) == 3


def test_runs_that_do_not_differ_are_told_apart_by_their_folders(trained):
    labels = [
        bars.label for bars in planned(trained("a"), trained("b"))["step_time"].panels[0].bars
    ]
    assert labels == ["a", "b"]


def test_a_run_without_the_others_quantity_is_named(trained, tmp_path):
    with Writer(tmp_path / "killed") as writer:
        writer.add("start", 0, 0, steps_per_epoch=20)
        writer.add("step", 5, 0, loss=5.0)
    pictures = planned(trained("whole"), tmp_path / "killed")
    assert any(note.endswith("nothing was validated.") for note in pictures["accuracy"].notes)


def test_scaling_has_the_ideal_line_and_the_published_points(trained):
    runs = [
        trained(f"n{n}", {"platform": {"num_devices": n}}, devices=n, images_per_s=speed)
        for n, speed in ((1, 1150.0), (2, 2260.0), (8, 8300.0))
    ]
    picture = planned(*runs)["scaling"]
    series = series_of(picture)
    assert (series["measured"].x, series["measured"].y) == ((1, 2, 8), (1150, 2260, 8300))
    assert (series["ideal"].x, series["ideal"].y) == ((1, 8), (1150, 9200))
    published = series["published, DGX-1 V100 16GB"]
    assert (published.x, published.y) == ((1, 8), (1200, 8322))
    assert picture.panels[0].x_ticks == (1, 2, 8)


def test_unequal_batches_in_scaling_are_told(trained):
    runs = [
        trained(
            f"n{n}",
            {"platform": {"num_devices": n}, "batch": {"per_device_batch": batch}},
            devices=n,
        )
        for n, batch in ((1, 128), (8, 256))
    ]
    notes = planned(*runs)["scaling"].notes
    assert any("differ in images a device: 128, 256" in note for note in notes)


def test_long_curves_are_thinned_and_say_so(trained):
    picture = planned(trained(epochs=100, steps_per_epoch=200, print_every=5))["loss"]
    training = series_of(picture)["training"]
    assert len(training.x) <= MOST_POINTS
    assert training.x[-1] == pytest.approx(100, abs=0.1)
    assert picture.notes == ("Long curves are drawn as means of up to 4 records.",)


def test_thinning_keeps_gaps_and_means():
    points = [(float(x), 2.0 * x if x != 2 else math.nan) for x in range(3 * MOST_POINTS)]
    kept, group = thinned(points)
    assert group == 3
    assert kept[0] == (0.5, 1.0) and kept[1][0] == 2.0 and math.isnan(kept[1][1])
    assert kept[2] == (4.0, 8.0)
    assert len(kept) <= MOST_POINTS + 2
    assert thinned(points[:10]) == (points[:10], 1)
