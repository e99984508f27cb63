"""Resuming with other settings, data or processes: refused, or allowed and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_classification.config.schema import DataConfig
from image_classification.core.errors import CheckpointError
from image_classification.data.loaders import BACKENDS, DECODING
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.restore import (
    decoding_warnings,
    preprocessing_warnings,
    restore,
    setting_changes,
    with_defaults,
)
from image_classification.engine.checkpoints.save import CheckpointSaver
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train
from image_classification.launch.run import MODES
from image_classification.models import Preprocessing, build
from image_classification.models.weights import model_metadata, read_header
from image_classification.reporting.sinks import read_metrics
from tests.support.models import save_model

DATA = DataConfig(image_size=64, resize=72, backend="pytorch")
FAULTY_LAUNCH = Path(__file__).parents[1] / "faulty_launch.py"


def drive(run):
    return list(train(run, StopRequest()))


def warned(records):
    return [r.values["message"] for r in records if r.kind == "warning"]


@pytest.mark.faults(
    "A run is resumed with another recipe, without and with --allow-changes",
    "refused with each difference; allowed, it resumes and every later report names them",
)
def test_changes_are_refused_or_recorded(small_config, open_run):
    drive(open_run(small_config(loss__label_smoothing=0.0), max_steps=2))
    other = small_config(optim__lr=0.5, loss__label_smoothing=0.2)
    with pytest.raises(CheckpointError, match=r"optim\.lr 0\.02 -> 0\.5.*--allow-changes"):
        drive(open_run(other, resume="auto"))
    run = open_run(other, resume="auto", allow_changes=True, max_steps=3)
    records = drive(run)
    changes = ["loss.label_smoothing 0.0 -> 0.2", "optim.lr 0.02 -> 0.5"]
    assert any("; ".join(changes) in message for message in warned(records))
    assert [r.step for r in records if r.kind == "step"] == [3]
    assert [r.values["lr"] for r in records if r.kind == "step"] == [run.schedule.lr(2)]
    saved = checkpoint.load(checkpoint.listed(run.checkpoints)[-1].path)
    starts = saved.meta["progress"]["starts"]
    assert [(s["step"], s["changes"]) for s in starts] == [(0, []), (2, changes)]
    assert records[-1].values["results"]["starts"] == starts
    # The next start has the same settings as the last checkpoint.
    assert warned(drive(open_run(other, resume="auto", max_steps=4))) == []


def test_setting_newer_than_the_checkpoint_has_its_default() -> None:
    saved = {"optim.lr": 0.1}
    mine = {"optim.lr": 0.1, "optim.nesterov": False, "data.mean": [0.485, 0.456, 0.406]}
    assert setting_changes(with_defaults(saved, mine), mine) == []
    changed = {**mine, "optim.nesterov": True}
    assert setting_changes(with_defaults(saved, changed), changed) == [
        "optim.nesterov False -> True"
    ]


@pytest.mark.faults(
    "A run is resumed as another network with --allow-changes",
    "refused: `its weights do not fit`",
)
@pytest.mark.parametrize("change", [{"model__num_classes": 4}, {"model__se_reduction": "fixed16"}])
def test_another_network_is_refused(small_config, open_run, change, tmp_path):
    drive(open_run(small_config(), max_steps=1))
    run = open_run(small_config(), resume="auto", allow_changes=True)
    key = next(iter(change)).partition("__")[2]
    run.config = replace(
        run.config, model=replace(run.config.model, **{key: next(iter(change.values()))})
    )
    with pytest.raises(CheckpointError, match="weights do not fit"):
        drive(run)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"optim__name": "rmsprop"}, "the optimizer starts without state"),
        ({"optim__momentum": 0.0}, {"optim__momentum": 0.9}, "the optimizer starts without state"),
        ({}, {"ema__decay": 0.9}, "the moving average starts at"),
        ({"ema__decay": 0.9}, {"ema__decay": None}, "ema.decay 0.9 -> None"),
        ({}, {"run__seed": 5}, "the new seed's order"),
    ],
)
def test_state_without_counterpart_is_reset_with_a_warning(
    small_config, open_run, before, after, said
):
    drive(open_run(small_config(**before), max_steps=2))
    config = small_config(**{**before, **after})
    run = open_run(config, resume="auto", allow_changes=True, max_steps=4, validate=False)
    records = drive(run)
    assert any(said in message for message in warned(records))
    assert all(torch.isfinite(t).all() for t in run.parts.model.state_dict().values())
    assert run.progress.step == 4


def test_new_moving_average_starts_at_the_weights(small_config, open_run):
    first = open_run(small_config(), max_steps=2)
    drive(first)
    run = open_run(small_config(ema__decay=0.9), resume="auto", allow_changes=True, max_steps=2)
    drive(run)
    for name, tensor in first.parts.model.state_dict().items():
        assert torch.equal(run.parts.ema.state_dict()[name], tensor), name


def fewer_images(folder, config):
    for image in sorted((folder / "train").rglob("*.JPEG"))[::3]:
        image.unlink()
    return replace(config, data=replace(config.data, path=str(folder)))


@pytest.mark.faults(
    "A run is resumed on another data set, without and with --allow-changes",
    "refused with both numbers; allowed in a new folder, it restarts its epoch",
)
def test_another_data_set_restarts_the_epoch_in_a_new_folder(
    small_config, open_run, own_image_folder, tmp_path
):
    old = open_run(small_config(), max_steps=6)  # 4 steps per epoch: two steps into the second
    drive(old)
    assert old.progress.best_top1 is not None
    config = fewer_images(own_image_folder, small_config())  # 24 images: 3 steps
    with pytest.raises(CheckpointError, match=r"36 train images -> 24.*--allow-changes"):
        drive(open_run(config, resume="auto"))
    with pytest.raises(CheckpointError, match="another --workspace"):
        drive(open_run(config, resume="auto", allow_changes=True))

    new = str(tmp_path / "new")
    run = open_run(config, resume=str(old.workspace), workspace=new, allow_changes=True)
    records = drive(run)
    steps = [r for r in records if r.kind == "step"]
    assert [r.step for r in steps] == [4, 5, 6, 7, 8, 9]
    assert [r.epoch for r in steps] == [1, 1, 1, 2, 2, 2]
    said = " ".join(warned(records))
    assert "continuing at the start of epoch 1 (from 0), which is step 3 now" in said
    assert "its first 2 steps are repeated" in said
    # The best validation on the old images does not count.
    assert next(r for r in records if r.kind == "validation").values["is_best"]

    resumed = drive(open_run(config, resume="auto", workspace=new))
    assert {r.kind for r in resumed} == {"start", "warning", "end"}
    assert [message for message in warned(resumed) if "no steps are left" not in message] == []


@pytest.mark.faults(
    "A run is resumed on a data set of the same size with other class names",
    "refused: `other class names`",
)
def test_other_class_names_are_refused(small_config, open_run, own_image_folder):
    config = small_config()
    drive(open_run(config, max_steps=1))
    for split in ("train", "val"):
        (own_image_folder / split / "owl").rename(own_image_folder / split / "ape")
    other = replace(config, data=replace(config.data, path=str(own_image_folder)))
    with pytest.raises(CheckpointError, match="other class names"):
        drive(open_run(other, resume="auto"))


def test_changed_loss_scale_is_not_overruled_by_the_checkpoint(small_config, open_run):
    # float16 cannot run here; the scaler's state is all that matters.
    def scaled(scale, **control):
        run = open_run(small_config(), **control)
        run.config = replace(run.config, precision=replace(run.config.precision, loss_scale=scale))
        run.parts.amp.scaler = run.accelerator.grad_scaler(scale)
        return run

    run = scaled(128.0)
    run.parts.amp.scaler.scale(torch.ones(()))
    saver = CheckpointSaver(run)
    list(saver.begin())
    list(saver.finish())
    saver.close()
    changed = scaled(1024.0, resume="auto", allow_changes=True)
    restore(changed)
    assert changed.parts.amp.scaler.get_scale() == 1024.0
    same = scaled(128.0, resume="auto")
    restore(same)
    assert same.parts.amp.scaler.get_scale() == 128.0


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    header = model_metadata(
        "resnet18", 5, preprocessing=Preprocessing.of(DATA), decoding=DECODING["pytorch"]
    )
    save_model(path, build("resnet18", 5), header)
    return path


def test_every_backend_has_a_decoding() -> None:
    assert sorted(DECODING) == sorted(BACKENDS)


def test_same_preprocessing_gives_no_warning(weights: Path) -> None:
    assert preprocessing_warnings(weights, DATA) == []
    assert preprocessing_warnings(weights, replace(DATA, backend="dali-cpu")) == []


def test_another_resize_is_named_with_the_remedy(weights: Path) -> None:
    (warning,) = preprocessing_warnings(weights, replace(DATA, resize=80, antialias=False))
    assert "resize 72 -> 80, antialias True -> False" in warning
    assert "--set data.resize=72 --set data.antialias=true" in warning
    (warning,) = preprocessing_warnings(weights, replace(DATA, mean=(0.5, 0.5, 0.5)))
    assert "--set data.mean=[0.485,0.456,0.406]" in warning


def test_another_decoder_is_named_with_its_backends(weights: Path) -> None:
    (warning,) = preprocessing_warnings(weights, replace(DATA, backend="dali-gpu"))
    assert "libjpeg-turbo" in warning
    assert "--data-backend dali-cpu or pytorch" in warning
    assert decoding_warnings(weights, DATA) == []


def test_another_resize_and_decoder_are_both_named(weights: Path) -> None:
    warnings = preprocessing_warnings(weights, replace(DATA, backend="synthetic", resize=80))
    assert len(warnings) == 2


def test_weights_without_metadata_give_a_warning(weights: Path) -> None:
    save_file(load_file(weights), weights)
    (warning,) = preprocessing_warnings(weights, DATA)
    assert "does not say how" in warning


@pytest.mark.parametrize("bad", ["{", "[]", '{"decoder": "x"}', '{"decoder": 1, "resampler": "x"}'])
def test_unusable_decoding_metadata_is_refused(weights: Path, bad: str) -> None:
    metadata = model_metadata("resnet18", 5, decoding=DECODING["pytorch"])
    save_file(load_file(weights), weights, metadata={**metadata, "decoding": bad})
    with pytest.raises(CheckpointError, match="unusable model metadata"):
        read_header(weights)


def test_evaluation_warns_of_other_preprocessing(small_config, open_run, tmp_path):
    drive(open_run(small_config(), max_steps=4))
    saved = checkpoint.listed(tmp_path / "run" / "checkpoints")[-1]
    assert read_header(checkpoint.weights_file(saved.path)).decoding == DECODING["pytorch"]

    def messages(**sections: object) -> list[str]:
        folder = str(tmp_path / "evaluation")
        config = small_config(mode="evaluate", run__workspace=folder, **sections)
        run = open_run(config, resume=str(tmp_path / "run"))
        records = list(MODES["evaluate"].records(run, StopRequest()))
        return [r.values["message"] for r in records if r.kind == "warning"]

    assert messages() == []
    (resized,) = messages(data__interpolation="bicubic")
    assert "interpolation bilinear -> bicubic" in resized
    file = str(checkpoint.weights_file(saved.path))
    run = open_run(small_config(mode="evaluate", data__resize=40, model__pretrained_from_file=file))
    records = list(MODES["evaluate"].records(run, StopRequest()))
    assert any("resize" in r.values["message"] for r in records if r.kind == "warning")


def test_resume_warns_of_another_decoder(small_config, open_run, monkeypatch):
    ours = DECODING["pytorch"]
    monkeypatch.setitem(DECODING, "pytorch", DECODING["dali-gpu"])
    drive(open_run(small_config(), max_steps=2))
    monkeypatch.setitem(DECODING, "pytorch", ours)
    records = drive(open_run(small_config(), resume="auto", max_steps=4))
    (warning,) = [r.values["message"] for r in records if r.kind == "warning"]
    assert "--data-backend dali-gpu gives the same ones" in warning


@pytest.mark.faults(
    "A run on 2 ranks is stopped mid-epoch and resumed on 1, then on 3",
    "survived: each image once per epoch, same learning rates, a warning",
)
@pytest.mark.slow
def test_two_then_one_then_three_ranks_see_each_image_once(
    small_arguments, small_config, open_run, tmp_path, jobs
):
    folder, samples = tmp_path / "run", tmp_path / "samples.jsonl"
    arguments = [a for a in small_arguments if "batch." not in a]
    # 36 images, 12 per step: 3 steps per epoch; the world changes after steps 1 and 2.
    arguments += ["--set=batch.global=12", "--set=schedule.epochs=2", f"--workspace={folder}"]
    for world, stop_at in ((2, 1), (1, 2), (3, 6)):
        argv = [
            *(*arguments, "--resume=auto", f"--set=run.max_steps={stop_at}"),
            *(f"--set=platform.num_devices={world}", f"--batch-size={12 // world}"),
        ]
        job = jobs.start_ranks(FAULTY_LAUNCH, argv, world, SAMPLES=str(samples))
        assert job.wait() == 0, job.stderr

    seen: dict[int, list[int]] = {0: [], 1: []}
    for line in samples.read_text().splitlines():
        request = json.loads(line)
        seen[request["epoch"]] += request["indices"]
    for epoch, indices in seen.items():
        assert sorted(indices) == list(range(36)), epoch

    records = read_metrics(folder / "metrics.jsonl")
    steps = [r for r in records if r.kind == "step"]
    assert [r.step for r in steps] == [1, 2, 3, 4, 5, 6]
    config = small_config(batch__global=12, batch__per_device=12, schedule__epochs=2)
    schedule = open_run(config, workspace=str(tmp_path / "other")).schedule
    assert [r.values["lr"] for r in steps] == [schedule.lr(s) for s in range(6)]
    assert {r.values["global_batch"] for r in records if r.kind == "start"} == {12}

    report = json.loads((folder / "report.json").read_text())
    starts = report["results"]["starts"]
    assert [(s["step"], s["world_size"]) for s in starts] == [(0, 2), (1, 1), (2, 3)]
    assert [s["changes"] for s in starts] == [[], [], []]
    assert starts[0]["resumed_from"] is None
    assert starts[1]["resumed_from"].endswith("step-0000000001")
    assert [r.values["message"][:22] for r in records if r.kind == "warning"][-1] == (
        "resumed on 3 processes"
    )
