"""Losses and gradients that are not finite: detected at their step, last good checkpoint kept."""

import json
import math
from pathlib import Path

import pytest
import torch

from image_classification.core.errors import DivergedError
from image_classification.data.order import sample_order
from image_classification.engine import train as engine
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.finiteness import (
    DIVERGENCE_FILE,
    FinitenessMonitor,
    report_divergence,
)
from image_classification.engine.step import train_step
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train

SCRIPT = Path(__file__).with_name("faulty_launch.py")
CPU = torch.device("cpu")


def report_of(folder):
    return json.loads((folder / DIVERGENCE_FILE).read_text())


def spoil_gradient(run):
    """Make one gradient NaN from now on; the loss of this step stays finite."""
    next(run.parts.model.parameters()).register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.faults(
    "A loss or a gradient becomes NaN, logged every 1,000 steps",
    "stopped at that step, last good checkpoint kept, samples named",
)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_one_process_stops_at_the_diverged_step(small_config, open_run, monkeypatch, kind):
    config = small_config(batch__per_device=4, run__log_every_steps=1000, run__save_every="1 steps")
    run = open_run(config)

    def step(run, batches, step, epoch, monitor):
        if step == 5 and kind == "loss":
            with torch.no_grad():
                run.parts.model.fc.bias.fill_(math.inf)
        if step == 5 and kind == "gradient":
            spoil_gradient(run)
        assert step <= 5, "the step after the bad one must not begin"
        return train_step(run, batches, step, epoch, monitor)

    monkeypatch.setattr(engine, "train_step", step)
    with pytest.raises(DivergedError, match=f"{kind} is not finite at step 5 ") as caught:
        for _ in train(run, StopRequest()):
            pass
    assert caught.value.step == 5
    assert checkpoint.listed(run.checkpoints)[-1].step == 5
    found = report_of(run.workspace)
    assert (found["step"], found["epoch"], found["epoch_step"]) == (5, 1, 1)
    assert found["reason"] == kind
    assert found["bad_ranks"] == [0]
    assert found["learning_rate"] == run.schedule.lr(5)
    assert found["loss_scale"] is None
    assert isinstance(found["ranks"][0]["loss"], str) == (kind == "loss")
    batches = found["ranks"][0]["micro_batches"]
    assert [len(b["samples"]) for b in batches] == [4, 4]
    indices = [s["index"] for b in batches for s in b["samples"]]
    assert indices == sample_order(config.run.seed, 1, 36)[8:16].tolist()
    names = [s["name"] for b in batches for s in b["samples"]]
    assert names == [run.train_loader.sample_name(i) for i in indices]
    assert all((Path(config.data.path) / name).is_file() for name in names)


@pytest.mark.parametrize("save_every", ["1 steps", "9 epochs"])
def test_delayed_check_is_read_before_saving(small_config, open_run, monkeypatch, save_every):
    class LateMonitor(FinitenessMonitor):
        """Reads a step after the next one, as on a GPU."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._delay_steps = 1

    taken = []

    def step(run, batches, step, epoch, monitor):
        if step == 1:
            spoil_gradient(run)
        taken.append(step)
        return train_step(run, batches, step, epoch, monitor)

    monkeypatch.setattr(engine, "FinitenessMonitor", LateMonitor)
    monkeypatch.setattr(engine, "train_step", step)
    run = open_run(small_config(run__log_every_steps=1000, run__save_every=save_every))
    with pytest.raises(DivergedError, match="gradient is not finite at step 1 "):
        list(train(run, StopRequest()))
    steps = [saved.step for saved in checkpoint.listed(run.checkpoints)]
    assert (taken, steps) == (([0, 1], [1]) if save_every == "1 steps" else ([0, 1, 2], []))
    assert report_of(run.workspace)["step"] == 1


def test_divergence_is_reported_when_its_file_cannot_be_written(small_config, open_run):
    run = open_run(small_config())
    (run.workspace / DIVERGENCE_FILE).mkdir()
    spoil_gradient(run)
    with pytest.raises(
        DivergedError, match=f"gradient is not finite .* cannot write .*{DIVERGENCE_FILE}"
    ):
        list(train(run, StopRequest()))


def note(monitor, step, overflow):
    scale = torch.tensor(2.0)
    monitor.record(step, 0, 0.1, (torch.tensor(1.0),), scale=scale, overflow=torch.tensor(overflow))
    return monitor.divergence()


def test_only_overflows_in_a_row_are_divergence():
    monitor = FinitenessMonitor(CPU, max_in_a_row=3, skipped=7)
    pattern = [True, True, False, True, True, True]
    found = [note(monitor, step, overflow) for step, overflow in enumerate(pattern)]
    assert found[:5] == [None] * 5
    assert found[5] is not None
    assert (found[5].step, found[5].overflows) == (5, 3)
    assert monitor.skipped == 7 + 5


def test_check_is_read_one_step_late_unless_all_steps_are_read():
    monitor = FinitenessMonitor(CPU, max_in_a_row=3)
    monitor._delay_steps = 1  # as on a GPU
    loss = (torch.tensor(1.0),)
    monitor.record(0, 0, 0.1, loss, grad_norm=torch.tensor(math.inf))
    assert monitor.divergence() is None
    monitor.record(1, 0, 0.1, loss, grad_norm=torch.tensor(1.0))
    late = monitor.divergence()
    assert late is not None and late.step == 0

    monitor.record(2, 0, 0.1, loss, grad_norm=torch.tensor(math.nan))
    at_once = monitor.divergence(all_steps=True)
    assert at_once is not None and at_once.step == 2


def test_divergence_by_overflows_names_their_number(small_config, open_run):
    run = open_run(small_config(run__max_skipped_steps_in_a_row=2))
    monitor = FinitenessMonitor(CPU, run.config.run.max_skipped_steps_in_a_row)
    assert note(monitor, 4, True) is None
    error = report_divergence(run, note(monitor, 5, True))
    assert str(error).startswith("2 fp16 overflows in a row up to step 5 ")
    found = report_of(run.workspace)
    assert (found["reason"], found["overflows_in_a_row"]) == ("overflows", 2)
    assert (found["step"], found["loss_scale"]) == (5, 2.0)


@pytest.mark.faults(
    "A loss or a gradient becomes NaN on one rank of two",
    "both stopped at that step, exit 3, last good checkpoint kept, rank and samples named",
)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_two_ranks_stop_at_the_diverged_step(small_arguments, tmp_path, jobs, kind):
    folder, sound = tmp_path / "run", tmp_path / "sound"
    halves = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    halves = [a.replace("log_every_steps=1", "log_every_steps=1000") for a in halves]
    halves += ["--set=platform.num_devices=2", "--save-every=1 steps", "--gather-checkpoints=9"]
    job = jobs.start_ranks(SCRIPT, [*halves, f"--workspace={folder}"], 2, FAULT=f"{kind}:1:2")
    assert job.wait() == 3, job.stderr
    where = "rank 1" if kind == "loss" else "an unknown rank"
    lines = job.error_lines()
    assert len(lines) == 1
    assert f"{kind} is not finite at step 2 on {where}" in lines[0]
    assert "step-0000000002 is kept" in lines[0]

    steps = [saved.step for saved in checkpoint.listed(folder / "checkpoints")]
    assert steps == [1, 2]
    written = report_of(folder)
    assert written["step"] == 2
    assert written["reason"] == kind
    assert written["bad_ranks"] == ([1] if kind == "loss" else "unknown")
    assert [r["loss"] == "nan" for r in written["ranks"]] == [False, kind == "loss"]
    indices = [
        [s["index"] for b in rank["micro_batches"] for s in b["samples"]]
        for rank in written["ranks"]
    ]
    order = sample_order(0, 0, 36)[16:24].tolist()
    assert indices == [order[:4], order[4:]]
    assert json.loads((folder / "report.json").read_text())["exit"]["code"] == 3
    if kind == "gradient":
        return
    more = ["--set=run.max_steps=2", "--training-only"]
    job = jobs.start_ranks(SCRIPT, [*halves, f"--workspace={sound}", *more], 2)
    assert job.wait() == 0, job.stderr
    kept, expected = (
        checkpoint.load(checkpoint.listed(f / "checkpoints")[-1].path) for f in (folder, sound)
    )
    for name, tensor in {**expected.model, **expected.state}.items():
        assert torch.equal(tensor, {**kept.model, **kept.state}[name]), name
