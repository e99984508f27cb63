"""When a run ends early: stop signals, and ``run.stop_at_top1``."""

import json
import os
import signal
from dataclasses import replace

import pytest

from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.evaluate import evaluate
from image_classification.engine.stop import STOP_SIGNALS, StopRequest
from image_classification.engine.train import train
from tests.support.cli import launch as main


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_recorded(number):
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.signal_name == signal.Signals(number).name


def test_previous_handlers_are_restored():
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_signal_to_another_rank_is_a_request():
    with StopRequest(any_rank=lambda mine: True) as stop:
        assert stop.requested()
        assert stop.signal_name is None


SCORES = [40.0, 60.0, 75.9, 90.0]


@pytest.fixture
def scored(monkeypatch):
    """Let validations return `SCORES`, one per epoch; the moving average has 30 points less."""

    def scored_evaluation(run, model, loader, stop, recorder):
        result = evaluate(run, model, loader, stop, recorder)
        epoch = run.progress.step // run.train_loader.steps_per_epoch - 1
        worse = 0.0 if model is run.parts.model else 30.0
        return replace(result, top1=SCORES[epoch] - worse)

    monkeypatch.setattr("image_classification.engine.evaluate.evaluate", scored_evaluation)


def drive(run):
    return list(train(run, StopRequest()))


def test_run_ends_once_the_top1_is_reached(small_config, open_run, scored):
    config = small_config(schedule__epochs=4)
    run = open_run(config, stop_at_top1=75.9)
    records = drive(run)
    assert run.progress.step == 12
    assert checkpoint.best_step(run.checkpoints) == 12
    checkpoint.verify(checkpoint.listed(run.checkpoints)[-1].path)
    target = records[-1].values["results"]["target"]
    assert (target["stop_at_top1"], target["top1"]) == (75.9, 75.9)
    assert (target["epoch"], target["step"]) == (3, 12)
    assert 0 < target["time_s"] <= records[-1].values["results"]["time_s"]["total"]

    again = open_run(config, stop_at_top1=75.9, resume="auto")
    records = drive(again)
    # A warning says that the details of the evaluation do not fit the scores, which are invented.
    assert {r.kind for r in records} == {"start", "warning", "end"}
    assert records[-1].values["results"]["target"] == target

    further = open_run(config, stop_at_top1=80.0, resume="auto")
    drive(further)
    assert further.progress.step == 16


def test_top1_of_the_moving_average_counts(small_config, open_run, scored):
    run = open_run(small_config(schedule__epochs=4, ema__decay=0.9), stop_at_top1=59.0)
    records = drive(run)
    assert run.progress.step == 16
    assert records[-1].values["results"]["target"]["top1"] == 60.0


def test_top1_not_reached(small_config, open_run, scored):
    records = drive(open_run(small_config(schedule__epochs=1), stop_at_top1=99.0))
    assert records[-1].values["results"]["target"] == {"stop_at_top1": 99.0}


def test_report_and_console_show_when_the_top1_was_reached(
    small_arguments, tmp_path, capfd, scored, no_pictures
):
    folder = tmp_path / "run"
    argv = [*small_arguments, f"--workspace={folder}", "--stop-at-top1=60"]
    assert main(argv) == 0
    results = json.loads((folder / "report.json").read_text())["results"]
    assert results["target"]["step"] == 8
    assert [s["step"] for s in results["starts"]] == [0]
    assert "top-1 60.00 % reached (60.00 %) after epoch 2, step 8" in " ".join(
        capfd.readouterr().out.split()
    )
    assert main([*argv, "--resume=auto"]) == 0
    again = json.loads((folder / "report.json").read_text())["results"]
    assert again["target"] == results["target"]
    assert again["train"]["steps"] is None


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"run.stop_at_top1": 100.5}, "100 or less"),
        ({"run.stop_at_top1": 70.0, "run.validate": False}, "run.validate is false"),
    ],
)
def test_unreachable_top1_is_refused(overrides, part):
    with pytest.raises(ConfigError, match=part):
        resolve("resnet50", "AMP", "convergence", "DGX1V", overrides=overrides)
