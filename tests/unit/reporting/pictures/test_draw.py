import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.pictures.draw import Gallery, draw, draw_run
from image_classification.reporting.pictures.source import read_run
from tests.support import runs as made
from tests.support.pictures import why_left_out
from tests.support.runs import TRAINING_PICTURES, Writer, write_inference


def draw_with_report(run: Path) -> Gallery:
    report = read_run(run).report
    assert report is not None
    return draw_run(run, report)


def test_each_picture_is_written_as_png_and_svg(trained):
    run = trained(epochs=90)
    gallery = draw_with_report(run)
    assert [path.name for path in gallery.files] == [
        f"{name}.{kind}" for name in TRAINING_PICTURES for kind in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in gallery.files[::2])
    accuracy = (run / "plots" / "accuracy.svg").read_text()
    for text in ("Validation accuracy", "top-1, percent", "published 76.88", "epochs done"):
        assert text in accuracy


def test_the_same_run_gives_the_same_bytes(tmp_path, make_config):
    run = read_run(write_inference(tmp_path / "run", make_config()))
    first = draw([run], tmp_path / "first").files
    second = draw([run], tmp_path / "second").files
    assert [path.name for path in first] == ["latency.png", "latency.svg"]
    assert [path.read_bytes() for path in second] == [path.read_bytes() for path in first]
    assert "<dc:date>" not in first[1].read_text()


def test_only_png(tmp_path, make_config):
    run = read_run(write_inference(tmp_path / "run", make_config()))
    gallery = draw([run], tmp_path / "out", ["png"])
    assert [path.name for path in gallery.files] == ["latency.png"]
    assert gallery.drawn[0].svg == ""


def test_missing_inference_and_an_unknown_model_leave_their_pictures_out(trained):
    run = trained()
    made.change_report(run, "environment", devices=None)
    made.change_report(run, "name", model="7")
    assert why_left_out("latency", run, run) == "no inference was measured"
    unknown = "the multiply-adds of 7 at 224 pixels are unknown"
    assert why_left_out("accuracy_cost", run) == unknown


def test_damaged_report_is_an_error(trained):
    run = trained()
    made.change_report(run, "results", inference=["row"])
    with pytest.raises(WorkspaceError, match=r"results.inference\[0\] is 'row', not an object"):
        read_run(run)


def test_folder_without_report_and_records_is_an_error(tmp_path):
    with pytest.raises(WorkspaceError, match=r"has neither report\.json nor metrics\.jsonl; give"):
        read_run(tmp_path)


def test_unwritable_folder_is_an_error(trained):
    run = trained()
    (run / "plots").write_text("a file where the folder should be")
    with pytest.raises(WorkspaceError, match=r"cannot write .*plots.*give another --workspace"):
        draw_with_report(run)


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
    undecodable = b"\xff".decode("utf-8", "surrogateescape")
    labels = {
        "_hidden": "_hidden",
        "$x_{": "$x_{",
        "a" * 200: "a" * 200,
        "<b>&": "<b>&",
        "\u4e2d\u6587": "\u4e2d\u6587",
        "line\nbreak": "line\ufffdbreak",
        undecodable: "\ufffd",
    }
    for i, name in enumerate(labels):
        with Writer(tmp_path / name) as writer:
            writer.add("start", 0, 0, steps_per_epoch=4)
            for step in (1, 2, 3):
                writer.add("step", step, 0, loss=1.0 + i, step_time_s=0.1 * step)
    gallery = draw([read_run(tmp_path / name) for name in labels], tmp_path / "out")
    assert [drawn.picture.name for drawn in gallery.drawn] == ["loss", "step_time"]
    assert [label for label, _ in gallery.drawn[0].picture.entries] == list(labels.values())
    for drawn in gallery.drawn:
        texts = [each.text for each in ElementTree.fromstring(drawn.svg).iter() if each.text]
        assert {"hidden", "$x_{", "a" * 31 + "…" + "a" * 31, "<b>&"} <= set(texts)


def test_a_long_legend_does_not_shrink_the_axes(tmp_path):
    runs = []
    for i in range(30):
        folder = tmp_path / f"a-run-with-a-rather-long-name-{i:02d}"
        with Writer(folder) as writer:
            writer.add("start", 0, 0, steps_per_epoch=4)
            writer.add("step", 2, 0, loss=1.0 + i)
            writer.add("step", 4, 0, loss=1.0)
        runs.append(read_run(folder))
    gallery = draw(runs, tmp_path / "out", ["svg"])
    assert len({look for _, look in gallery.drawn[0].picture.entries}) == 30
    axes = re.search(
        r'id="patch_2">\s*<path d="M [0-9.]+ ([0-9.]+)[^z]* ([0-9.]+) ', gallery.drawn[0].svg
    )
    assert axes is not None
    low, high = sorted(map(float, axes.groups()))
    assert high - low > 2 * 72, "less than two inches"
