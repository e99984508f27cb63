"""Training in one process: records, resuming, stopping, diverging."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from image_classification.core.errors import CheckpointError, ConfigError, DataError, DivergedError
from image_classification.data.tools import quarantine
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints import restore
from image_classification.engine.checkpoints.save import CheckpointSaver
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.engine.train import last_step, train
from image_classification.launch.run import MODES


def drive(run):
    return list(train(run, StopRequest()))


def weights(run):
    return {k: v.clone() for k, v in run.parts.model.state_dict().items()}


def kinds(records):
    return [r.kind for r in records]


# Every part with state or randomness.
RICH = {
    "mixing__mixup": 0.2,
    "mixing__cutmix": 1.0,
    "loss__label_smoothing": 0.1,
    "ema__decay": 0.9,
    "batch__per_device": 4,
    "data__hflip_prob": 0.5,
}


def test_records_of_a_run(small_config, open_run):
    records = drive(open_run(small_config()))
    steps = [r for r in records if r.kind == "step"]
    assert [r.step for r in steps] == list(range(1, 13))
    assert kinds(records)[0] == "start"
    assert kinds(records)[-1] == "end"
    assert kinds(records).count("epoch") == kinds(records).count("validation") == 3
    results = records[-1].values["results"]
    assert results["train"]["steps"] == 12
    assert results["train"]["images"] == 96
    assert results["train"]["epochs"] == 3
    assert results["train"]["images_per_s"] > 0
    assert results["validation"]["images"] == 15
    assert steps[-1].values["loss"] < steps[0].values["loss"]


def test_learning_rate_follows_the_schedule_not_the_stopping_point(small_config, open_run):
    config = small_config(schedule__epochs=50)
    short = drive(open_run(config, max_steps=6, workspace=config.run.workspace + "-short"))
    longer = drive(open_run(config, max_steps=9, workspace=config.run.workspace + "-longer"))
    lr = [[r.values["lr"] for r in records if r.kind == "step"] for records in (short, longer)]
    assert len(lr[0]) == 6
    assert lr[0] == lr[1][:6]


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(small_config, open_run):
    config = small_config(**RICH)
    whole = open_run(config, workspace=config.run.workspace + "-whole")
    unbroken = drive(whole)

    pieces = []
    for stop_at in (3, 4, 8, 11, None):  # in and between epochs
        run = open_run(config, max_steps=stop_at, resume="auto")
        pieces.append(drive(run))

    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, run.parts.model.state_dict()[name]), name
    for name, tensor in whole.parts.ema.state_dict().items():
        assert torch.equal(tensor, run.parts.ema.state_dict()[name]), name
    joined = [r for r in itertools.chain(*pieces) if r.kind == "step"]
    expected = [r for r in unbroken if r.kind == "step"]
    assert [r.step for r in joined] == [r.step for r in expected]
    for key in ("lr", "loss"):
        assert [r.values[key] for r in joined] == [r.values[key] for r in expected], key
    scores = [r.values["top1"] for r in itertools.chain(*pieces) if r.kind == "validation"]
    assert scores == [r.values["top1"] for r in unbroken if r.kind == "validation"]


def test_signal_saves_at_a_step_boundary_and_resuming_is_bit_equal(small_config, open_run):
    config = small_config(**RICH)
    whole = open_run(config, workspace=config.run.workspace + "-whole")
    drive(whole)

    run = open_run(config)
    stop = StopRequest()
    seen = []
    with pytest.raises(Stopped, match="SIGTERM"):
        for record in train(run, stop):
            seen.append(record)
            if record.kind == "step" and record.step == 6:
                stop.signal_name = "SIGTERM"
    assert [s.step for s in checkpoint.listed(run.checkpoints)][-1] == 6
    assert seen[-1].kind == "end"

    resumed = open_run(config, resume="auto")
    drive(resumed)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_resuming_a_finished_run_trains_nothing_and_says_so(small_config, open_run):
    config = small_config()
    drive(open_run(config))
    records = drive(open_run(config, resume="auto"))
    (warning,) = [r for r in records if r.kind not in ("start", "end")]
    assert "no steps are left to train" in warning.values["message"]


def test_resuming_under_other_settings_names_the_difference(small_config, open_run):
    drive(open_run(small_config(), max_steps=2))
    other = small_config(optim__lr=0.5)
    with pytest.raises(CheckpointError, match=r"optim\.lr 0\.02 -> 0\.5"):
        drive(open_run(other, resume="auto"))


def test_batch_split_and_save_interval_may_change_on_resume(small_config, open_run):
    drive(open_run(small_config(), max_steps=2))
    # Twice the micro-batch, half the accumulation: the same global batch.
    config = small_config(batch__per_device=4, run__save_every="2 steps")
    assert drive(open_run(config, resume="auto", max_steps=3))[-1].kind == "end"


def test_missing_resume_target_is_an_error(small_config, open_run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        open_run(small_config(), resume=str(tmp_path / "nowhere"))


def test_divergence_keeps_the_last_good_checkpoint(small_config, open_run):
    config = small_config(optim__lr=0.02)
    drive(open_run(config, max_steps=3))
    good = checkpoint.listed(open_run(config).checkpoints)[-1]
    run = open_run(config, resume="auto")
    with pytest.raises(DivergedError) as caught:
        for record in train(run, StopRequest()):
            if record.kind == "start":
                with torch.no_grad():
                    next(run.parts.model.parameters()).fill_(math.nan)
    assert caught.value.step == 3
    assert checkpoint.listed(run.checkpoints)[-1] == good
    checkpoint.verify(good.path)


def test_non_finite_weights_are_never_saved(small_config, open_run):
    run = open_run(small_config())
    with torch.no_grad():
        next(run.parts.model.parameters()).fill_(math.inf)
    with pytest.raises(DivergedError):
        list(CheckpointSaver(run).begin())
    assert checkpoint.listed(run.checkpoints) == []


def test_early_stopping_counts_validations_without_gain(small_config, open_run):
    config = small_config(optim__lr=0.0, schedule__epochs=9)
    run = open_run(config, early_stopping_patience=1, save_checkpoints=False)
    scores = [r.values["top1"] for r in drive(run) if r.kind == "validation"]
    assert len(scores) < 9
    assert scores[-1] <= max(scores[:-1])
    assert all(later > max(scores[:i]) for i, later in enumerate(scores[:-1]) if i)


def test_run_epochs_counts_from_the_start_step(small_config, open_run):
    config = small_config(schedule__epochs=9)
    drive(open_run(config, run_epochs=1))
    run = open_run(config, run_epochs=1, resume="auto")
    drive(run)
    assert run.progress.step == 8
    assert last_step(run, 8) == 12


def test_rotation_and_best(small_config, open_run):
    run = open_run(small_config(), save_every="1 steps", keep_checkpoints=2)
    drive(run)
    kept = [s.step for s in checkpoint.listed(run.checkpoints)]
    assert kept[-2:] == [11, 12]
    assert checkpoint.best_step(run.checkpoints) in kept
    assert len(kept) <= 3


def frozen_statistics(run):
    """Keep BN in evaluation mode, so that the micro-batches of a step are independent."""
    run.parts.model.eval()
    run.parts.model.train = lambda mode=True: run.parts.model


def test_accumulation_does_not_change_the_update(small_config, open_run):
    losses = []
    for per_device in (8, 4):
        config = small_config(batch__per_device=per_device)
        folder = f"{config.run.workspace}-{per_device}"
        run = open_run(config, max_steps=3, workspace=folder)
        frozen_statistics(run)
        losses.append([r.values["loss"] for r in drive(run) if r.kind == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_evaluating_a_checkpoint_gives_the_recorded_figures(small_config, open_run, tmp_path):
    config = small_config()
    records = drive(open_run(config, early_stopping_patience=9, keep_checkpoints=-1))
    trained = {r.step: r.values for r in records if r.kind == "validation"}
    best = max(trained, key=lambda step: (trained[step]["top1"], -step))
    folder, results = tmp_path / "run", records[-1].values["results"]
    assert results["best"] == {"top1": trained[best]["top1"], "epoch": best // 4, "step": best}
    assert results["last"] == {"top1": trained[12]["top1"], "epoch": 3, "step": 12}
    paths = {s.step: str(s.path) for s in checkpoint.listed(folder / "checkpoints")}
    evaluation = small_config(mode="evaluate", run__workspace=str(tmp_path / "evaluation"))
    for chosen, target, step, which in (
        (None, folder, best, "best"),
        ("best", folder, best, "best"),
        ("last", folder, 12, "last"),
        ("8", folder, 8, "step"),
        (None, paths[4], 4, "step"),
    ):
        run = open_run(evaluation, resume=str(target), checkpoint=chosen)
        records = list(MODES["evaluate"].records(run, StopRequest()))
        results = records[-1].values["results"]
        used = {"checkpoint": paths[step], "which": which, "epoch": step / 4, "step": step}
        assert results["evaluated"] == used
        start = next(r for r in records if r.kind == "start")
        assert start.values["weights"].endswith(f"(epoch {step // 4}, step {step}): {paths[step]}")
        expected = {k: trained[step][k] for k in ("top1", "top5", "loss", "images")}
        assert results["validation"] == expected


def test_checkpoints_that_cannot_be_chosen_are_refused(
    small_config, open_run, tmp_path, monkeypatch
):
    drive(open_run(small_config(), max_steps=6, validate=False))
    folder = str(tmp_path / "run")
    evaluation = small_config(mode="evaluate", run__workspace=str(tmp_path / "evaluation"))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7: .* has 6;"):
        open_run(evaluation, resume=folder, checkpoint="7")
    with pytest.raises(CheckpointError, match=r"\(none was validated, .*: give --checkpoint last"):
        open_run(evaluation, resume=folder, checkpoint="best")
    with pytest.raises(ConfigError, match="leave --checkpoint out"):
        open_run(evaluation, resume=f"{folder}/checkpoints/step-0000000006", checkpoint="last")
    run = open_run(evaluation, resume=folder)
    records = list(MODES["evaluate"].records(run, StopRequest()))
    assert "names no best checkpoint (none was validated, or" in records[0].values["message"]
    assert records[-1].values["results"]["evaluated"]["which"] == "last"
    monkeypatch.setattr(restore, "agree_max", lambda step: max(step, 8))  # another rank finds 8
    with pytest.raises(CheckpointError, match="the processes found different checkpoints"):
        open_run(evaluation, resume=folder)


def test_an_earlier_checkpoint_is_continued_in_another_folder_only(
    small_config, open_run, tmp_path
):
    drive(open_run(small_config(), max_steps=8, keep_checkpoints=-1))
    run = open_run(small_config(), resume="auto", checkpoint="4")
    with pytest.raises(CheckpointError, match="is not the newest checkpoint of its run"):
        drive(run)
    new = str(tmp_path / "new")
    run = open_run(small_config(), resume=str(tmp_path / "run"), checkpoint="4", workspace=new)
    records = drive(run)
    assert records[0].values["start_step"] == 4
    assert run.progress.step == 12


def test_benchmark_training_measures_and_saves_nothing(small_config, open_run):
    config = small_config(mode="benchmark_training")
    run = open_run(config)
    records = drive(run)
    assert "checkpoint" not in kinds(records)
    assert "validation" not in kinds(records)
    assert records[-1].values["results"]["train"]["images_per_s"] > 0


def test_benchmark_inference_has_percentiles_per_batch(small_config, open_run):
    config = small_config(mode="benchmark_inference")
    run = open_run(config, inference_batches=(1, 3, 40), inference_iterations=4)
    records = list(MODES["benchmark_inference"].records(run, StopRequest()))
    rows = records[-1].values["results"]["inference"]
    assert [row["batch"] for row in rows] == [1, 3, 40]
    for row in rows:
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / latency["mean"])
    assert any("random" in r.values.get("message", "") for r in records if r.kind == "warning")


def test_benchmark_data_measures_the_loader_alone(small_config, open_run):
    run = open_run(small_config(mode="benchmark_data"))
    records = list(MODES["benchmark_data"].records(run, StopRequest()))
    assert records[-1].values["results"]["data"]["images_per_s"] > 0


@pytest.mark.parametrize("precision", ["AMP", "BF16"])
def test_reduced_precision_trains(small_config, open_run, precision):
    records = drive(open_run(small_config(precision=precision), max_steps=8))
    losses = [r.values["loss"] for r in records if r.kind == "step"]
    assert losses[-1] < losses[0]


def over(folder, config):
    return replace(config, data=replace(config.data, path=str(folder)))


def test_undecodable_images_are_named_once_and_counted(small_config, open_run, own_image_folder):
    bad = own_image_folder / "train" / "dog" / "004.JPEG"
    bad.write_bytes(b"not an image")
    config = over(own_image_folder, small_config(data__error_budget=0.1, run__log_every_steps=100))
    records = drive(open_run(config))
    warned = [r.values["message"] for r in records if r.kind == "warning"]
    assert [str(bad) in message for message in warned] == [True]
    counts = [r.values["undecodable"] for r in records if r.kind == "epoch"]
    assert counts[-1] == 1
    assert counts == sorted(counts)


def test_run_ends_beyond_the_error_budget(small_config, open_run, own_image_folder):
    for number in range(6):
        (own_image_folder / "train" / "dog" / f"{number:03d}.JPEG").write_bytes(b"")
    config = over(own_image_folder, small_config(data__error_budget=0.1))
    with pytest.raises(DataError, match=r"[456] of 36 train images cannot be decoded"):
        drive(open_run(config))


def test_quarantined_images_are_counted_at_the_start(small_config, open_run, own_image_folder):
    quarantine.save(own_image_folder / "quarantine.json", {"train/cat/003.JPEG": "truncated"})
    records = drive(open_run(over(own_image_folder, small_config()), max_steps=1))
    assert kinds(records)[:2] == ["start", "warning"]
    assert records[0].values["num_train_images"] == 35
    assert records[1].values["message"].startswith("1 train images are left out")
