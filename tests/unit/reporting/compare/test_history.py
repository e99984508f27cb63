from pathlib import Path

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.compare.history import (
    history_json,
    print_history,
    read_history,
)
from image_classification.reporting.compare.regression import DEFAULTS


def flags(history):
    (line,) = history.lines
    return {
        entry.run.label: [(flag.change.figure, flag.earlier.label) for flag in entry.flags]
        for entry in line.entries
    }


def test_changes_within_the_thresholds_are_not_flagged(months):
    history = read_history(months((8300, 76.8), (8250, 76.9), (8400, 76.75)))
    assert flags(history) == {"01": [], "02": [], "03": []}
    assert not history.regressed and not history.left_out


def test_a_slow_drift_is_found_against_the_best(months):
    folder = months((8300, 76.8), (8000, 76.8), (7700, 76.8))
    history = read_history(folder)
    assert flags(history) == {"01": [], "02": [], "03": [("train_images_per_s", "01")]}
    assert history.regressed == ["resnet50 AMP convergence DGX1V 90e, 8 devices"]
    assert flags(read_history(folder, against="previous")) == {"01": [], "02": [], "03": []}


def test_a_run_is_compared_only_with_earlier_ones(months):
    # The second is worse than the third, which came later.
    history = read_history(months((8000, 76.8), (7900, 76.8), (9000, 77.5)))
    assert flags(history) == {"01": [], "02": [], "03": []}


def test_only_the_newest_run_counts_as_regressed(months):
    history = read_history(months((8300, 76.8), (7000, 76.0), (8300, 76.8)))
    assert flags(history)["02"] == [("top1", "01"), ("train_images_per_s", "01")]
    assert not history.regressed


def test_thresholds_can_be_changed(months):
    folder = months((8300, 76.8), (7000, 76.8))
    assert not read_history(folder, {**DEFAULTS, "throughput": 20.0}).regressed


def test_runs_are_sorted_by_their_end(record_run, run_results, tmp_path):
    record_run("runs/a", ended_at=20, results=run_results(7000.0))
    record_run("runs/b", ended_at=10, results=run_results(8300.0))
    assert flags(read_history(tmp_path / "runs")) == {"b": [], "a": [("train_images_per_s", "b")]}


def test_runs_with_other_settings_form_their_own_line(record_run, run_results, tmp_path):
    record_run("runs/a", ended_at=1, data__workers=5)
    record_run("runs/b", ended_at=2, results=run_results(6000.0), data__workers=1)
    record_run("runs/c", ended_at=3, precision="FP32", results=run_results(2800.0))
    history = read_history(tmp_path / "runs")
    assert [len(line.entries) for line in history.lines] == [1, 1, 1]
    assert [line.settings for line in history.lines] == [[], ["data.workers 5 -> 1"], []]
    assert not history.regressed
    merged = read_history(tmp_path / "runs", ignored=["data.workers"])
    assert [len(line.entries) for line in merged.lines] == [2, 1]
    assert len(merged.regressed) == 1


def test_evaluations_of_two_checkpoints_are_not_one_series(record_run, run_results, tmp_path):
    # The best and the last checkpoint of one run: 94.44 % and 61.11 % are no regression.
    for at, (digest, top1) in enumerate((("a", 94.44), ("b", 61.11), ("a", 94.44))):
        results = run_results(top1=top1) | {"weights_sha256": digest * 64}
        results["validation"]["images"] = 360
        record_run(f"runs/{at}", mode="evaluate", ended_at=1 + at, results=results)
    history = read_history(tmp_path / "runs")
    labels = [[entry.run.label for entry in line.entries] for line in history.lines]
    assert labels == [["0", "2"], ["1"]] and not history.regressed
    assert history.lines[1].settings == [f"weights sha256 {'a' * 12} -> sha256 {'b' * 12}"]


def test_validation_on_other_images_is_not_one_series(record_run, run_results, tmp_path):
    for at, (images, top1) in enumerate((("0" * 16, 94.44), ("1" * 16, 61.11))):
        results = run_results(top1=top1) | {"validation_set": images}
        record_run(f"runs/{at}", ended_at=1 + at, results=results)
    history = read_history(tmp_path / "runs")
    assert len(history.lines) == 2 and not history.regressed


def test_runs_that_ended_early_are_not_compared(months, record_run, run_results):
    folder = months((8300, 76.8))
    record_run("runs/02", ended_at=2, results=run_results(99.0), exit_code=75)
    history = read_history(folder)
    # A stopped run can be continued, so nothing is compared with it.
    assert flags(history) == {"01": [], "02": []} and not history.regressed
    record_run("runs/03", ended_at=3, results={}, exit_code=3)
    assert len(read_history(folder).regressed) == 1
    record_run("runs/04", ended_at=4)
    assert not read_history(folder).regressed


def test_unreadable_reports_are_listed(months):
    folder = months((8300, 76.8))
    (folder / "foreign").mkdir()
    (folder / "foreign" / "report.json").write_text("{}")
    (folder / "gone").mkdir()
    (folder / "gone" / "report.json").symlink_to(folder / "nothing")
    history = read_history(folder)
    assert len(history.lines) == 1
    foreign, gone = history.left_out
    assert "foreign/report.json has schema version None" in foreign
    assert "gone/report.json: No such file" in gone
    (folder / "01" / "report.json").unlink()
    with pytest.raises(WorkspaceError, match=r"no report below .* can be read: .* \(and 1 more\)"):
        read_history(folder)


def test_history_as_json(months):
    content = history_json(read_history(months((8300, 76.8), (7000, 76.8))))
    (line,) = content["lines"]
    assert line["regressed"] and line["name"]["num_devices"] == 8
    first, second = line["runs"]
    assert first["flags"] == [] and first["environment"]["torch"] == "2.10.0"
    (flag,) = second["flags"]
    assert flag["figure"] == "train_images_per_s" and flag["against"] == "best"
    assert flag["earlier"] == first["path"]
    assert content["regressed"] == ["resnet50 AMP convergence DGX1V 90e, 8 devices"]


def test_print_history(releases, check_shown, monkeypatch):
    monkeypatch.chdir(releases.parent)
    (releases / "foreign").mkdir()
    (releases / "foreign" / "report.json").write_text("{}")
    check_shown("history", print_history, read_history(Path("runs")))


def test_container_images_are_numbered_below_a_history(record_run, shown):
    images = ["docker", "docker, image-classification 0.2.0 on nvcr.io/nvidia/pytorch:26.09-py3"]
    for at, image in enumerate([*images, images[1]]):
        record_run(f"runs/{at}", ended_at=1 + at, environment={"container": image})
    folder = record_run("runs/3", ended_at=4, environment={"container": images[0]}).parent
    text = shown(print_history, read_history(folder))
    assert f"container 1: {images[0]}\n" in text
    assert f"container 2: {images[1]}" in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if line.startswith(" 2026-01-")]
    assert [row[-2] for row in rows] == ["1", "2", "2", "1"]
