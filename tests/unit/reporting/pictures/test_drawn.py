"""The pictures' files, and what still draws of odd, broken or unfinished runs."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.pictures.draw import draw, draw_run, plan
from image_classification.reporting.pictures.source import read_run, with_records
from image_classification.reporting.report import read_report
from tests.support import runs as made
from tests.support.runs import TRAINING_PICTURES, Writer, write_inference


def test_a_png_and_an_svg_of_each_picture_are_written(trained):
    run = trained(epochs=90)
    gallery = draw_run(run, read_report(run / "report.json"))
    assert [path.name for path in gallery.files] == [
        f"{name}.{kind}" for name in TRAINING_PICTURES for kind in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in gallery.files[::2])
    accuracy = (run / "plots" / "accuracy.svg").read_text()
    for text in ("Validation accuracy", "top-1, percent", "published 76.88", "epochs done"):
        assert text in accuracy


def test_the_same_run_draws_the_same_bytes(tmp_path, make_config):
    run = read_run(write_inference(tmp_path / "run", make_config()))
    first = draw([run], tmp_path / "first").files
    again = draw([run], tmp_path / "again").files
    assert [path.name for path in first] == ["latency.png", "latency.svg"]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]
    assert "<dc:date>" not in first[1].read_text()


def test_one_format_alone(tmp_path, make_config):
    run = read_run(write_inference(tmp_path / "run", make_config()))
    gallery = draw([run], tmp_path / "out", ["png"])
    assert [path.name for path in gallery.files] == ["latency.png"]
    assert gallery.drawn[0].svg == ""


def test_a_report_with_values_of_the_wrong_kind_leaves_them_out(trained):
    run = trained(inference=made.inference_rows())
    made.change_report(
        run, "results", inference=["row", {"batch": 1}, {"latency_ms": {"mean": "x"}}]
    )
    made.change_report(run, "environment", devices=5)
    made.change_report(run, "name", model=7)
    changed = with_records(run, replace(read_report(run / "report.json"), published=["row", {}]))
    pictures = {each.name: each for each in plan([changed])}
    assert pictures["latency"].why == "no inference was measured"
    assert pictures["accuracy_cost"].why == "the multiply-adds of 7 at 224 pixels are not known"


def test_neither_report_nor_records_is_one_clear_line(tmp_path):
    with pytest.raises(WorkspaceError, match=r"has neither report\.json nor metrics\.jsonl; name"):
        read_run(tmp_path)


def test_an_unwritable_folder_is_one_clear_line(trained):
    run = trained()
    (run / "plots").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot write .*plots.*give another --workspace"):
        draw_run(run, read_report(run / "report.json"))


def test_records_of_a_killed_run_are_enough(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add("start", 0, 0, steps_per_epoch=10)
        for step in range(1, 6):
            writer.now_s += 1.0
            writer.add(
                "step", step, 0, loss=5.0 - step, lr=0.1, images_per_s=100.0, step_time_s=0.5
            )
    gallery = draw([read_run(tmp_path)], tmp_path / "plots")
    names = [drawn.picture.name for drawn in gallery.drawn]
    assert names == ["loss", "learning_rate", "over_time", "step_time"]


def test_folders_of_any_name_are_drawn(tmp_path):
    names = (
        "_hidden",
        "$x_{",
        "a" * 200,
        "<b>&",
        "\u4e2d\u6587",
        "line\nbreak",
        b"\xff".decode("utf-8", "surrogateescape"),
    )
    for at, name in enumerate(names):
        with Writer(tmp_path / name) as writer:
            writer.add("start", 0, 0, steps_per_epoch=4)
            for step in (1, 2, 3):
                writer.add("step", step, 0, loss=1.0 + at, step_time_s=0.1 * step)
    gallery = draw([read_run(tmp_path / name) for name in names], tmp_path / "out")
    assert [drawn.picture.name for drawn in gallery.drawn] == ["loss", "step_time"]
    labels = [label for label, _ in gallery.drawn[0].picture.entries]
    assert labels == [
        "_hidden",
        "$x_{",
        "a" * 200,
        "<b>&",
        "\u4e2d\u6587",
        "line\ufffdbreak",
        "\ufffd",
    ]
    for drawn in gallery.drawn:
        texts = [each.text for each in ElementTree.fromstring(drawn.svg).iter() if each.text]
        assert {"hidden", "$x_{", "a" * 31 + "…" + "a" * 31, "<b>&"} <= set(texts)


def test_many_runs_leave_room_for_the_curves(tmp_path):
    runs = []
    for at in range(30):
        with Writer(tmp_path / f"a-run-with-a-rather-long-name-{at:02d}") as writer:
            writer.add("start", 0, 0, steps_per_epoch=4)
            writer.add("step", 2, 0, loss=1.0 + at)
            writer.add("step", 4, 0, loss=1.0)
        runs.append(read_run(tmp_path / f"a-run-with-a-rather-long-name-{at:02d}"))
    gallery = draw(runs, tmp_path / "out", ["svg"])
    assert len({look for _, look in gallery.drawn[0].picture.entries}) == 30
    axes = re.search(
        r'id="patch_2">\s*<path d="M [0-9.]+ ([0-9.]+)[^z]* ([0-9.]+) ', gallery.drawn[0].svg
    )
    low, high = sorted(map(float, axes.groups()))
    # The curves keep two inches however long the legend is.
    assert high - low > 2 * 72
