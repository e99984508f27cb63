"""Pictures of several runs: means over the seeds, and figures over a history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_classification.config.resolve import resolve
from image_classification.reporting.compare.groups import group_runs
from image_classification.reporting.compare.history import read_history
from image_classification.reporting.pictures.comparisons import combined_pictures, history_picture
from image_classification.reporting.pictures.draw import draw_svg
from image_classification.reporting.pictures.picture import LeftOut, Picture
from image_classification.reporting.run_folder import read_run
from tests.support import runs as made


def write_run(folder: Path, precision: str = "AMP", seed: int = 0, **options) -> Path:
    folder.mkdir(parents=True)
    config = resolve(
        "resnet50", precision, "convergence", "DGX1V", "90e", overrides={"run.seed": seed}
    )
    options = {"steps_per_epoch": 4, "print_every": 2, "epochs": 5, "ema": False} | options
    return made.write_training(folder, config, noise_seed=seed, **options)


def test_means_over_the_seeds_with_their_spread(tmp_path):
    folders = [write_run(tmp_path / f"amp{s}", seed=s, top1=76.0 + s) for s in range(3)]
    folders.append(write_run(tmp_path / "fp32", "FP32"))
    groups = group_runs([read_run(folder) for folder in folders])
    curves, scaling = combined_pictures(groups)
    assert isinstance(curves, Picture) and isinstance(scaling, LeftOut)
    top1, close_up, loss = curves.panels
    amp, fp32 = top1.series
    assert (amp.label, fp32.label) == ("AMP", "FP32")
    assert amp.x == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert amp.y[-1] == pytest.approx(77.0 * (1 - 0.7 * 2.718281828**-7), abs=0.01)
    assert amp.errors[-1] == pytest.approx(1.0, abs=0.01) and fp32.errors == ()
    low, high = close_up.y_limits or (0.0, 0.0)
    assert low < 76.0 and 78.0 < (high or 0.0) < 80.0
    assert len(loss.series) == 2
    assert "<svg" in draw_svg(curves).svg


def test_unequal_lengths_are_averaged_where_all_have_values(tmp_path):
    folders = [write_run(tmp_path / f"{s}", seed=s, epochs=3 + s) for s in range(2)]
    for folder in folders:  # such runs are equal only by name
        content = json.loads((folder / "report.json").read_text())
        content["results"]["validation"]["images"] = None
        (folder / "report.json").write_text(json.dumps(content))
    curves, _ = combined_pictures(group_runs([read_run(folder) for folder in folders]))
    assert isinstance(curves, Picture)
    assert curves.panels[0].series[0].x == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("content", [None, b"{damaged\n"])
def test_runs_that_are_not_in_the_means_are_named(tmp_path, content):
    folders = [write_run(tmp_path / f"run-{s}", seed=s) for s in range(3)]
    metrics = folders[1] / "metrics.jsonl"
    metrics.unlink()
    if content is not None:
        metrics.write_bytes(content + b"{}\n")
    curves, _ = combined_pictures(group_runs([read_run(folder) for folder in folders]))
    assert isinstance(curves, Picture)
    assert curves.notes[1:] == ("Without run-1: no readable records (metrics.jsonl).",)


def test_reports_without_records_have_no_curves(record_run):
    curves, _ = combined_pictures(group_runs([read_run(record_run("a"))]))
    assert isinstance(curves, LeftOut) and "metrics.jsonl" in curves.why


def test_history_has_a_trend_and_marks_regressions(record_run, run_results, tmp_path):
    for day, speed in enumerate((8300.0, 8310.0, 7000.0, 8320.0), start=1):
        record_run(f"{day}", ended_at=day, results=run_results(speed))
    record_run("5", ended_at=5, results=run_results(1.0), exit_code=2)
    (line,) = read_history(tmp_path).lines
    picture = history_picture(line, "history")
    assert picture is not None
    panel = picture.panels[1]
    measured, trend, regressed = panel.series
    assert panel.y_label == "training\nimages/s"
    assert measured.y == (8300.0, 8310.0, 7000.0, 8320.0)  # not of the run that ended early
    assert measured.details[2] == "3, 3, 2026-01-03 03:00"
    assert (regressed.x, regressed.y) == ((3.0,), (7000.0,))
    assert trend.y == pytest.approx((8170.0, 7795.0))
    assert "3, 3, 2026-01-03 03:00" in json.dumps(draw_svg(picture).chart)


def test_history_of_a_single_run_has_no_picture(record_run, tmp_path):
    record_run("1")
    (line,) = read_history(tmp_path).lines
    assert history_picture(line, "history") is None
