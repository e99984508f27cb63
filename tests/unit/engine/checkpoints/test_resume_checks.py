"""Resuming with other settings or data: refused, or allowed and recorded."""

from dataclasses import replace

import pytest
import torch

from image_classification.core.errors import CheckpointError
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.resume_checks import setting_changes, with_defaults
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train


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
    # From here on the new settings are the run's own.
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
        ({}, {"optim__name": "rmsprop"}, "the optimizer starts anew"),
        ({"optim__momentum": 0.0}, {"optim__momentum": 0.9}, "the optimizer starts anew"),
        ({}, {"ema__decay": 0.9}, "the moving average starts at"),
        ({"ema__decay": 0.9}, {"ema__decay": None}, "ema.decay 0.9 -> None"),
        ({}, {"run__seed": 5}, "the new seed's order"),
    ],
)
def test_state_without_counterpart_starts_anew_with_a_warning(
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
    old = open_run(small_config(), max_steps=6)  # 4 steps an epoch: two into the second
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
    # Its first validation is the best so far: what the old images gave does not count.
    assert next(r for r in records if r.kind == "validation").values["is_best"]

    resumed = drive(open_run(config, resume="auto", workspace=new))
    assert {r.kind for r in resumed} == {"start", "end"}


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
    from image_classification.engine.checkpoints import run_state as saving
    from image_classification.engine.checkpoints.async_save import CheckpointSaver

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
    saving.restore(changed)
    assert changed.parts.amp.scaler.get_scale() == 1024.0
    same = scaled(128.0, resume="auto")
    saving.restore(same)
    assert same.parts.amp.scaler.get_scale() == 128.0
