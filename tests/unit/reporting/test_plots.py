import math

import pytest
from image_classification.reporting.plots import draw, plan

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.published import Band

BANDS = (
    Band("top1", 76.56, 77.2, "published 76.88 ± 0.32"),
    Band("train_images_per_s", 7906, 8738, "published 8,322 ± 416"),
)


def curves_of(plots):
    return {plot.name: {curve.label: curve for curve in plot.curves} for plot in plots}


def test_curves_hold_the_measured_points_over_epochs(records):
    curves = curves_of(plan(records))
    assert list(curves) == ["loss", "accuracy", "learning_rate", "throughput"]
    assert curves["accuracy"]["top-1"].x == (1.0, 2.0)
    assert curves["accuracy"]["top-1"].y == (30.0, 50.0)
    assert curves["loss"]["training"].x[:2] == (0.25, 0.5)
    assert curves["throughput"]["data wait included"].y == (8000.0, 8000.0)


def test_nothing_is_drawn_for_what_was_not_measured(records, tmp_path):
    training_only = [
        Record(record.kind, record.step, record.epoch, {**record.values, "lr": None})
        for record in records
        if record.kind in ("start", "step")
    ]
    assert [plot.name for plot in plan(training_only, BANDS)] == ["loss"]
    assert list(curves_of(plan(training_only))["loss"]) == ["training"]
    assert draw([Record("inference", 0, 0, {"batch": 1})], tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


def test_the_average_and_the_bands_are_in_their_figures(records):
    ema = Record("validation_ema", 8, 1, {"top1": 55.0, "loss": 1.5})
    plots = plan([*records, ema], BANDS)
    curves = curves_of(plots)
    assert curves["accuracy"]["top-1, EMA"].y == (55.0,)
    assert curves["loss"]["validation, EMA"].y == (1.5,)
    bands = {plot.name: [band.figure for band in plot.bands] for plot in plots}
    assert bands == {
        "loss": [],
        "accuracy": ["top1"],
        "learning_rate": [],
        "throughput": ["train_images_per_s"],
    }


def test_curves_of_a_figure_differ_in_black_and_white(records):
    ema = Record("validation_ema", 8, 1, {"top1": 55.0, "loss": 1.5})
    for plot in plan([*records, ema]):
        looks = {(curve.style, curve.marker) for curve in plot.curves}
        assert len(looks) == len(plot.curves), plot.name


def test_a_png_and_an_svg_of_each_figure_are_written(records, tmp_path):
    written = draw(records, tmp_path / "plots", BANDS)
    assert [path.name for path in written] == [
        f"{name}.{kind}"
        for name in ("loss", "accuracy", "learning_rate", "throughput")
        for kind in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[::2])
    accuracy = (tmp_path / "plots" / "accuracy.svg").read_text()
    for text in ("Validation accuracy", "top-1", "top-5", "published 76.88", "epochs done"):
        assert text in accuracy


def test_the_same_run_draws_the_same_bytes(records, tmp_path):
    validation = [record for record in records if record.kind in ("start", "validation")]
    first = draw(validation, tmp_path / "first", BANDS)
    again = draw(validation, tmp_path / "again", BANDS)
    assert [path.name for path in first] == ["loss.png", "loss.svg", "accuracy.png", "accuracy.svg"]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]


def test_a_single_point_and_a_gap_are_drawn(tmp_path):
    records = [
        Record("start", 0, 0, {"steps_per_epoch": 4}),
        Record("step", 2, 0, {"loss": 2.0, "lr": 0.0}),
        Record("step", 3, 0, {"loss": math.nan, "lr": 0.0}),
        Record("validation", 4, 0, {"top1": 50.0}),
    ]
    written = draw(records, tmp_path)
    assert {path.stem for path in written} == {"loss", "accuracy", "learning_rate"}


def test_an_unwritable_folder_is_one_clear_line(records, tmp_path):
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot write .*plots.*choose another --workspace"):
        draw(records, tmp_path / "plots")
