"""``--from RUN``: names and settings of an earlier run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from image_classification.cli.launch import parse
from image_classification.config.from_run import read_run_folder
from image_classification.config.keys import KEYS, to_yaml
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError

USER = {
    "data.image_size": 160,
    "data.path": "/data/photos",
    "optim.lr": 0.5,
    "schedule.epochs": 20,
    "run.log_every_steps": 7,
}


def write_run(folder: Path, config: RunConfig, checkpoints: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    if checkpoints:
        (folder / "checkpoints" / "step-0000000004").mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(to_yaml(config), encoding="utf-8")
    return folder


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    overrides = {**USER, "run.workspace": "elsewhere", "run.allow_changes": True}
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", "90e", overrides=overrides)
    return write_run(tmp_path / "run", config)


def explained(*argv: str) -> RunConfig:
    return parse(argv).read().on()


def differing(config: RunConfig, other: RunConfig) -> set[str]:
    def value(each: RunConfig, key: str) -> object:
        return getattr(getattr(each, KEYS[key].section), KEYS[key].field)

    return {key for key in KEYS if value(config, key) != value(other, key)}


def test_a_training_is_continued_in_its_folder_with_its_settings(earlier: Path) -> None:
    config = explained("--from", str(earlier))
    names = config.names
    assert (names.model, names.platform, names.recipe) == ("resnet50", "DGX1V", "90e")
    expected = resolve("resnet50", "AMP", "convergence", "DGX1V", "90e", overrides=USER)
    assert differing(config, expected) == {"run.workspace", "run.resume"}
    assert (config.run.workspace, config.run.resume) == (str(earlier), "auto")
    assert config.provenance["optim.lr"].startswith(f"{earlier}/config.yml (")
    assert config.provenance["model.name"] == f"{earlier}/config.yml"
    assert config.provenance["run.resume"] == f"--from {earlier}"
    # The file of the continued run names the first origins, not itself.
    again = explained("--from", str(write_run(earlier, config)))
    assert again.provenance["optim.lr"] == config.provenance["optim.lr"]


def test_an_evaluation_has_its_modes_own_settings(earlier: Path) -> None:
    config = explained("--from", str(earlier), "--mode", "evaluate", "--checkpoint", "last")
    assert (config.run.resume, config.run.checkpoint) == (str(earlier), "last")
    assert config.run.workspace is None
    assert not config.run.save_checkpoints
    assert config.run.log_every_steps == 7  # set for the earlier run
    assert (config.data.path, config.data.image_size) == ("/data/photos", 160)
    config = explained("--from", str(earlier), "--mode", "benchmark_inference")
    assert config.data.backend == "synthetic"
    # Not reading the earlier run's images needs no warning: nobody asked for them here.
    assert config.data.path == "synthetic"
    assert not any("is not read" in warning for warning in config.warnings)
    assert config.run.resume == str(earlier)
    assert explained("--from", str(earlier), "--mode", "benchmark_training").run.resume is None


def test_the_command_line_replaces_settings(earlier: Path, tmp_path: Path) -> None:
    argv = ["--from", str(earlier), "/other", "--lr", "0.1", "--workspace", str(tmp_path / "new")]
    config = explained(*argv)
    assert (config.data.path, config.optim.lr) == ("/other", 0.1)
    assert (config.run.workspace, config.run.resume) == (str(tmp_path / "new"), str(earlier))
    config = explained("--from", str(earlier), "--platform", "DGXA100", "--precision", "TF32")
    assert (config.platform.name, config.precision.name) == ("DGXA100", "TF32")
    assert config.precision.dtype == "float32"
    assert (config.optim.lr, config.batch.global_batch) == (0.5, 2048)


def test_a_split_that_was_found_is_found_again(tmp_path: Path) -> None:
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", overrides=USER)
    data = replace(config.data, split_file="runs/old-place/split.json")
    origin = {"data.split_file": "the run that is continued"}
    config = replace(config, data=data, provenance={**config.provenance, **origin})
    folder = write_run(tmp_path / "run", config)
    assert explained("--from", str(folder), "--mode", "evaluate").data.split_file is None
    overrides = {**USER, "data.split_file": "own.json"}
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", overrides=overrides)
    folder = write_run(tmp_path / "run", config)
    assert explained("--from", str(folder)).data.split_file == "own.json"


def test_what_contradicts_the_run_is_refused(earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model resnet18 contradicts --from .* leave --model"):
        parse(["--from", str(earlier), "--model", "resnet18"])
    with pytest.raises(ConfigError, match="--recipe 250e contradicts"):
        parse(["--from", str(earlier), "--recipe", "250e"])
    with pytest.raises(ConfigError, match=r"no run there .*name a run's folder"):
        parse(["--from", str(tmp_path / "absent")])
    with pytest.raises(ConfigError, match=r"name the run with --from RUN or --resume RUN"):
        names = ["--model=resnet50", "--precision=AMP", "--mode=evaluate", "--platform=DGX1V"]
        explained(*names, "--checkpoint", "best")


@pytest.mark.parametrize("text", ["[: x", "a: 1", "name: 3", "- x", "x: " + "[" * 9000])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(ConfigError, match="is damaged"):
        read_run_folder(tmp_path)


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    config = resolve("resnet50", "AMP", "convergence", "DGX1V")
    folder = str(write_run(tmp_path / "run", config, checkpoints=False))
    with pytest.raises(ConfigError, match="has no checkpoint to evaluate"):
        parse(["--from", folder, "--mode", "evaluate"])
    assert "starts from the beginning" in explained("--from", folder).warnings[0]
    for key, value in (("model.pretrained_from_file", "a.safetensors"), ("run.resume", "/runs/a")):
        config = resolve("resnet50", "AMP", "convergence", "DGX1V", overrides={key: value})
        config = explained("--from", str(write_run(tmp_path / key, config, checkpoints=False)))
        assert f"starts from {value}" in config.warnings[0]
        assert config.run.workspace == str(tmp_path / key)
        assert config.run.resume == (value if key == "run.resume" else "auto")
        assert config.model.pretrained_from_file == (None if key == "run.resume" else value)
    config = resolve(
        "resnet50", "AMP", "evaluate", "DGX1V", overrides={"run.resume": "/runs/trained"}
    )
    folder = str(write_run(tmp_path / "evaluation", config, checkpoints=False))
    repeated = explained("--from", folder)
    assert (repeated.run.mode, repeated.run.resume) == ("evaluate", "/runs/trained")
    with pytest.raises(ConfigError, match="has no checkpoint to continue"):
        parse(["--from", folder, "--mode", "convergence"])


def test_device_counts_that_were_found_are_found_again(tmp_path: Path) -> None:
    overrides = {"platform.device": "cpu"}
    config = resolve("resnet50", "FP32", "convergence", "DGX1V", overrides=overrides)
    folder = write_run(tmp_path / "run", config)
    config = explained("--from", str(folder))
    assert (config.platform.device, config.platform.num_devices) == ("cpu", 1)
    assert any("DGX1V is run on cpu" in warning for warning in config.warnings)


def test_unknown_settings_of_another_release_are_noted(earlier: Path) -> None:
    file = earlier / "config.yml"
    file.write_text(file.read_text() + "future:\n  thing: 3\n")
    assert "has no setting future.thing" in explained("--from", str(earlier)).warnings[0]


def test_a_note_says_how_a_name_given_with_from_was_read(earlier: Path) -> None:
    config = explained("--from", str(earlier), "--platform", "cuda")
    assert config.names.platform == "GPU"
    assert "platform 'cuda' is read as GPU" in config.warnings
