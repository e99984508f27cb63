import io
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.core.errors import EXIT_DIVERGED, EXIT_STOPPED, WorkspaceError
from image_classification.reporting.compare.regression import compare_folders, holds_runs
from image_classification.reporting.compare.regression_text import folders_json, print_folders
from image_classification.reporting.run_folder import read_run


def shown(found) -> str:
    out = io.StringIO()
    print_folders(Console(file=out, width=100, color_system=None), found)
    return out.getvalue()


@pytest.fixture
def folders(tmp_path, record_run, run_results):
    """An old and a new folder with a run of two names each; the second of the new one slower."""
    record_run("old/convergence", results=run_results(8300.0, 76.8))
    record_run("old/fp32", precision="FP32", results=run_results(2850.0, 77.0))
    record_run("new/convergence", results=run_results(8250.0, 76.9), environment={"torch": "2.14"})
    record_run(
        "new/other-folder-name",
        precision="FP32",
        results=run_results(2500.0, 77.0),
        environment={"torch": "2.14"},
    )
    return tmp_path / "old", tmp_path / "new"


def test_runs_are_paired_by_name(folders):
    found = compare_folders(*folders)
    pairs = [(c.old.label, c.new.label, [r.figure for r in c.regressed]) for c in found.comparisons]
    assert pairs == [
        ("convergence", "convergence", []),
        ("fp32", "other-folder-name", ["train_images_per_s"]),
    ]
    assert found.regressed == ["resnet50 FP32 convergence DGX1V 90e, 8 devices"]
    assert not found.not_compared
    text = shown(found)
    assert text.count("Environments differ") == 1
    assert "Regressed: resnet50 FP32 convergence DGX1V 90e, 8 devices" in text
    told = folders_json(found)
    assert told["regressed"] == found.regressed
    assert [c["old"]["runs"] for c in told["comparisons"]] == [1, 1]


def test_of_repeated_runs_the_median_counts(tmp_path, record_run, run_results):
    for at, speed in enumerate((100.0, 101.0, 60.0)):
        record_run(f"old/{at}", results=run_results(speed), ended_at=1 + at)
    record_run("new/0", results=run_results(99.0))
    found = compare_folders(tmp_path / "old", tmp_path / "new")
    (comparison,) = found.comparisons
    speed = next(c for c in comparison.changes if c.figure == "train_images_per_s")
    assert (speed.old, speed.new) == (100.0, 99.0)
    assert comparison.old_runs == 3
    text = shown(found)
    assert "old: median of 3 runs, the newest 2, 2026-01-03" in text
    assert "new: 0, 2026-01-05" in text
    assert "No figure of 1 run regressed." in text


def test_what_has_no_partner_is_named(folders, record_run):
    record_run("old/tf32", precision="TF32", platform="DGXA100", recipe=None)
    record_run("new/bf16", precision="BF16", platform="DGXA100", recipe=None)
    record_run("new/lr", optim__lr=1.0)
    (folders[1] / "damaged").mkdir()
    (folders[1] / "damaged" / "report.json").write_text("{")
    record_run("new/stopped", exit_code=EXIT_STOPPED, exit_message="SIGTERM")
    found = compare_folders(*folders)
    assert len(found.comparisons) == 2
    other, bf16, tf32 = sorted(found.not_compared, key=lambda text: text.split()[1])
    assert other.startswith("resnet50 AMP convergence DGX1V 90e, 8 devices: other settings")
    assert "optim.lr 2.048 -> 1)" in other
    assert bf16.startswith("resnet50 BF16") and bf16.endswith(f"only in {folders[1]}")
    assert tf32.startswith("resnet50 TF32") and tf32.endswith(f"only in {folders[0]}")
    assert len(found.left_out) == 2
    text = shown(found).replace("\n", "")
    assert text.count("not compared: ") == 3 and text.count("left out: ") == 2


def test_a_run_that_diverged_has_regressed(folders, record_run):
    record_run("new/diverged", exit_code=EXIT_DIVERGED, exit_message="loss is nan")
    found = compare_folders(*folders)
    assert "resnet50 AMP convergence DGX1V 90e, 8 devices diverged" in found.regressed


def test_nothing_in_common_is_an_error(tmp_path, record_run):
    record_run("old/a")
    record_run("new/a", precision="FP32")
    with pytest.raises(
        WorkspaceError, match=r"no run of .*/new can be compared with one of .*/old"
    ):
        compare_folders(tmp_path / "old", tmp_path / "new")
    with pytest.raises(WorkspaceError, match=r"none.* cannot be listed|cannot list .*none"):
        compare_folders(tmp_path / "none", tmp_path / "new")


def test_a_run_is_no_folder_of_runs(tmp_path: Path, record_run):
    run = record_run("runs/a")
    assert holds_runs(tmp_path / "runs")
    assert not holds_runs(run)
    assert not holds_runs(run / "report.json")
    assert read_run(run).label == "a"
