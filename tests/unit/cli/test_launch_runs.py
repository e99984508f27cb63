"""``launch.py`` running: run folders, and errors of one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from image_classification.reporting.sinks import read_metrics
from tests.support.cli import launch as main


@pytest.fixture
def fails(capfd, tmp_path, monkeypatch):
    """Run a command line that must end with exit code 2 and one line; return the line."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, untouched: Path | None = None) -> str:
        before = _tree(untouched) if untouched else None
        assert main([str(a) for a in argv]) == 2
        err = capfd.readouterr().err.strip()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        if untouched is not None:
            assert _tree(untouched) == before
        assert not list(tmp_path.glob("runs/*")), "a run that did not start left a folder"
        return lines[0]

    return run


def _tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p): p.read_bytes() for p in files}


def test_a_whole_run_fills_its_folder(small_arguments, tmp_path, capfd):
    folder = tmp_path / "run"
    assert main([*small_arguments, f"--workspace={folder}", "--raport-file=raport.json"]) == 0
    out = capfd.readouterr().out
    assert "top-1" in out
    for name in ("config.yml", "report.json", "report.html", "metrics.jsonl", "raport.json"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "plots").glob("*.png"))
    assert '<svg role="img"' in (folder / "report.html").read_text()
    assert {p.name for p in (folder / "checkpoints").iterdir()} >= {"best.json"}

    report = json.loads((folder / "report.json").read_text())
    assert report["schema_version"] == 1
    assert report["exit"] == {"status": "done", "code": 0, "message": ""}
    assert report["results"]["validation"]["images"] == 15
    assert report["results"]["train"]["images_per_s"] > 0
    assert report["results"]["inference"] is None
    assert report["telemetry"]["devices"][0]["memory_peak_bytes"] > 0
    assert report["telemetry"]["energy_j"] is None

    config = yaml.safe_load((folder / "config.yml").read_text())
    assert "resnet18" in json.dumps(config)
    assert [r.step for r in read_metrics(folder / "metrics.jsonl") if r.kind == "step"] == list(
        range(1, 13)
    )
    lines = (folder / "raport.json").read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    assert any("val.top1" in line for line in lines)


def test_resuming_a_complete_run_is_done(small_arguments, tmp_path):
    folder = tmp_path / "run"
    argv = [*small_arguments, f"--workspace={folder}", "--set=schedule.epochs=2"]
    assert main(argv) == 0
    before = {p.name for p in (folder / "checkpoints").iterdir()}
    assert main([*argv, "--resume=auto"]) == 0
    assert {p.name for p in (folder / "checkpoints").iterdir()} == before
    assert json.loads((folder / "report.json").read_text())["exit"]["code"] == 0


def test_without_a_data_set_the_error_names_the_alternatives(fails, small_arguments):
    argv = [a for a in small_arguments if "images" not in a or a.startswith("--")]
    line = fails(*argv, "/nowhere/imagenet")
    assert "docker run -v" in line
    assert "demo" in line
    assert "synthetic" in line


def test_an_empty_class_folder_is_named(fails, small_arguments, own_image_folder):
    argv = [*small_arguments[:4], str(own_image_folder), *small_arguments[5:]]
    for image in (own_image_folder / "train" / "dog").iterdir():
        image.unlink()
    assert str(own_image_folder / "train" / "dog") in fails(*argv)


def test_train_and_val_with_different_classes(fails, small_arguments, own_image_folder):
    argv = [*small_arguments[:4], str(own_image_folder), *small_arguments[5:]]
    (own_image_folder / "val" / "owl").rename(own_image_folder / "val" / "crow")
    line = fails(*argv)
    assert "owl" in line
    assert "crow" in line


def test_fewer_classes_than_the_models(fails, small_arguments):
    assert "--num_classes 3" in fails(*small_arguments, "--set=model.num_classes=1000")


def test_an_undecodable_image_is_named(small_arguments, own_image_folder, tmp_path, capfd):
    argv = [*small_arguments[:4], str(own_image_folder), *small_arguments[5:]]
    broken = own_image_folder / "val" / "cat" / "000.JPEG"
    broken.write_bytes(b"not an image")
    folder = tmp_path / "run"
    assert main([*argv, f"--workspace={folder}", "--save-every=2 steps"]) == 2
    assert f"{broken}" in capfd.readouterr().err
    # What was trained before is saved, and the run can continue once the file is repaired.
    assert json.loads((folder / "report.json").read_text())["exit"]["code"] == 2
    shutil.copy(own_image_folder / "val" / "cat" / "001.JPEG", broken)
    assert main([*argv, f"--workspace={folder}", "--save-every=2 steps", "--resume=auto"]) == 0


def test_a_workspace_below_a_file(fails, small_arguments, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = fails(*small_arguments, f"--workspace={tmp_path / 'file' / 'run'}")
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workspace_that_holds_another_run(fails, small_arguments, tmp_path):
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    line = fails(*small_arguments, f"--workspace={folder}", untouched=folder)
    assert "--resume auto" in line


def test_a_batch_that_does_not_divide_the_global_batch(fails, small_arguments):
    line = fails(*small_arguments, "-b=7")
    assert "7" in line
    assert "8" in line


def test_a_precision_the_device_lacks(fails, small_arguments):
    argv = ["--precision=TF32" if a.startswith("--precision=") else a for a in small_arguments]
    assert "TF32" in fails(*argv)
    line = fails(*small_arguments, "--set=precision.dtype=float16")
    assert "float16" in line


def test_a_gpu_platform_without_a_gpu_names_the_alternatives(fails):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    names = ["--model=resnet50", "--precision=AMP", "--mode=convergence", "--platform=DGX1V"]
    line = fails(*names, "demo")
    assert "platform.device=cpu" in line
    assert "DGX1V" in line


@pytest.mark.parametrize("target", ["/nowhere/run", "damaged"])
def test_a_missing_or_damaged_resume_target(fails, small_arguments, tmp_path, target):
    if target == "damaged":
        folder = tmp_path / "earlier" / "checkpoints" / "step-0000000003"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{")
        target = str(folder)
    line = fails(*small_arguments, f"--workspace={tmp_path / 'new'}", f"--resume={target}")
    assert target in line


def test_resuming_needs_the_folder_to_continue_in(fails, small_arguments):
    assert "--workspace" in fails(*small_arguments, "--resume=auto")


def test_evaluating_without_weights_is_refused(fails, small_arguments, tmp_path):
    argv = ["--mode=evaluate" if a.startswith("--mode=") else a for a in small_arguments]
    line = fails(*argv, f"--workspace={tmp_path / 'new'}")
    assert "--resume" in line
    assert "--pretrained-from-file" in line


def test_divergence_exits_3_and_keeps_the_last_good_checkpoint(small_arguments, tmp_path, capfd):
    folder = tmp_path / "run"
    argv = [*small_arguments, f"--workspace={folder}", "--set=optim.lr=1e30"]
    argv = [*argv, "--set=schedule.warmup_epochs=0"]
    assert main(argv) == 3
    assert "not finite" in capfd.readouterr().err
    report = json.loads((folder / "report.json").read_text())
    assert report["exit"]["status"] == "diverged"
    assert not list(folder.glob("checkpoints/*"))


@pytest.mark.parametrize(
    "mode", ["benchmark_training", "benchmark_training_short", "benchmark_inference"]
)
def test_the_benchmark_modes_report(small_arguments, tmp_path, mode):
    folder = tmp_path / mode
    argv = [f"--mode={mode}" if a.startswith("--mode=") else a for a in small_arguments]
    argv += ["--prof=4", f"--workspace={folder}", "--set=run.inference_batches=1,2"]
    assert main(argv) == 0
    results = json.loads((folder / "report.json").read_text())["results"]
    if mode == "benchmark_inference":
        assert [row["batch"] for row in results["inference"]] == [1, 2]
    else:
        assert results["train"]["images_per_s"] > 0
    assert not (folder / "checkpoints").exists()


def test_a_run_that_cannot_start_creates_no_folder(fails, small_arguments, tmp_path):
    folder = tmp_path / "run"
    line = [*small_arguments, f"--workspace={folder}"]
    assert "no checkpoint at" in fails(*line, f"--resume={tmp_path / 'none'}")
    assert "cannot write" in fails(*line, "--raport-file=/proc/none/raport.json")
    assert "File name too long" in fails(*small_arguments, f"--workspace={'a' * 300}")
    assert not folder.exists()


def test_another_topk_is_reported(small_arguments, tmp_path, capfd):
    folder = tmp_path / "run"
    line = [*small_arguments, f"--workspace={folder}", "--topk=2", "--run-epochs=1"]
    assert main([*line, "--raport-file=raport.json"]) == 0
    figures = json.loads((folder / "report.json").read_text())["results"]["validation"]
    assert figures["top5"] is None  # of three classes it says nothing
    assert figures["top1"] <= figures["top2"] <= 100.0
    assert "val.top2" in (folder / "raport.json").read_text()
    assert "top-2 " in capfd.readouterr().out


def test_out_of_memory_suggests_a_smaller_batch(fails, small_arguments, tmp_path, monkeypatch):
    def exhausted(*_: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr("image_classification.engine.train.train_step", exhausted)
    message = fails(*small_arguments, f"--workspace={tmp_path / 'run'}")
    assert "no memory left on cpu with 8 images of 32 px per device" in message
    assert "--batch-size 4 --optimizer-batch-size 8" in message
