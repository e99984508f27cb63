"""Saving during training: the captured step is written, one save at a time, completely."""

import errno
import gc
import json
import os
import threading
import weakref
from collections.abc import Generator
from contextlib import nullcontext

import pytest
import torch

from image_classification.core.errors import DivergedError, WorkspaceError
from image_classification.devices.async_readback import HostCopy
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints import save as saving
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.engine.train import train

RICH = {"mixing__mixup": 0.2, "ema__decay": 0.9, "batch__per_device": 4}
NO_VALIDATION = {"run__validate": False, "run__keep_checkpoints": -1}


class Gate:
    """Holds every write until `open`; counts how many wait at once."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.entered = threading.Event()
        self.most_at_once = 0
        self._now, self._lock = 0, threading.Lock()
        self._write = checkpoint._write
        monkeypatch.setattr(checkpoint, "_write", self)

    def __call__(self, folder, snapshot):
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        self.entered.set()
        assert self.open.wait(60)
        self._write(folder, snapshot)
        with self._lock:
            self._now -= 1


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def model_in(path):
    return checkpoint.load(path).model


def test_training_continues_while_a_checkpoint_is_written(small_config, open_run, gate):
    config = small_config(**NO_VALIDATION, run__save_every="2 steps", schedule__epochs=1)
    run = open_run(config, max_steps=3)
    kinds, at_step_2 = [], {}
    for record in train(run, StopRequest()):
        kinds.append((record.kind, record.step))
        if kinds[-1] == ("step", 2):
            at_step_2 = {k: v.clone() for k, v in run.parts.model.state_dict().items()}
        if kinds[-1] == ("step", 3):
            # Step 3 was taken although step 2 has not reached the disk.
            assert gate.entered.is_set()
            assert checkpoint.listed(run.checkpoints) == []
            gate.open.set()
    assert kinds.index(("checkpoint", 2)) > kinds.index(("step", 3))
    assert ("checkpoint", 3) in kinds
    # The weights of step 2 were written, not those of step 3.
    written = model_in(run.checkpoints / "step-0000000002")
    assert all(torch.equal(written[name], at_step_2[name]) for name in at_step_2)


def test_one_save_at_a_time_and_the_wait_is_recorded(small_config, open_run, gate):
    config = small_config(**NO_VALIDATION, run__save_every="1 steps", schedule__epochs=1)
    run = open_run(config, max_steps=3)
    opener = threading.Timer(1.0, gate.open.set)
    records = []
    for record in train(run, StopRequest()):
        records.append(record)
        if record.kind == "step" and record.step == 2:
            opener.start()
    opener.join()
    saves = [r for r in records if r.kind == "checkpoint"]
    assert [r.step for r in saves] == [1, 2, 3]
    assert gate.most_at_once == 1
    assert saves[0].values["waited_s"] == 0
    # The second save waited for the first.
    assert 0.5 < saves[1].values["waited_s"] <= saves[1].values["stall_s"]
    assert saves[1].values["stall_s"] <= saves[1].values["time_s"]
    assert saves[0].values["stall_s"] < saves[0].values["time_s"]


@pytest.mark.parametrize("failing", [False, True], ids=["written", "failing"])
def test_one_snapshot_is_in_memory_at_a_time(small_config, open_run, monkeypatch, failing):
    alive_at_capture: list[int] = []
    made: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    capture, on_host = saving.capture, saving.PendingSnapshot.on_host

    def counted(run):
        alive_at_capture.append(len(made))
        return capture(run)

    def kept(self):
        snapshot = on_host(self)
        made.update(snapshot.model.values())
        return snapshot

    monkeypatch.setattr(saving, "capture", counted)
    monkeypatch.setattr(saving.PendingSnapshot, "on_host", kept)
    if failing:
        breaking = iter([False, True, True, True])
        write_json = checkpoint._write_json

        def sometimes(path, value):
            if path.name == checkpoint.META and next(breaking):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            write_json(path, value)

        monkeypatch.setattr(checkpoint, "_write_json", sometimes)
    config = small_config(**NO_VALIDATION, run__save_every="1 steps", schedule__epochs=1)
    run = open_run(config, max_steps=3, on_save_error="warn")
    gc.disable()
    try:
        with pytest.raises(WorkspaceError) if failing else nullcontext():
            list(train(run, StopRequest()))
    finally:
        gc.enable()
    assert alive_at_capture == ([0, 0, 0, 0] if failing else [0, 0, 0])


@pytest.mark.slow
def test_resuming_from_a_background_checkpoint_is_bit_equal(small_config, open_run):
    config = small_config(**RICH, run__save_every="2 steps", run__keep_checkpoints=-1)
    whole = open_run(config, workspace=config.run.workspace + "-whole")
    list(train(whole, StopRequest()))
    # Step 6 is mid-epoch: written while step 7 was trained, and resumed elsewhere.
    source = whole.checkpoints / "step-0000000006"
    resumed = open_run(config, resume=str(source))
    assert [r.kind for r in train(resumed, StopRequest())][-1] == "end"
    for name, tensor in whole.parts.model.state_dict().items():
        assert torch.equal(tensor, resumed.parts.model.state_dict()[name]), name
    for name, tensor in whole.parts.ema.state_dict().items():
        assert torch.equal(tensor, resumed.parts.ema.state_dict()[name]), name
    last = "step-0000000012/state.safetensors"
    assert (whole.checkpoints / last).read_bytes() == (resumed.checkpoints / last).read_bytes()


def test_stop_during_a_write_completes_it_and_saves_the_last_step(small_config, open_run, gate):
    config = small_config(**NO_VALIDATION, run__save_every="2 steps")
    run, stop, seen = open_run(config), StopRequest(), []
    with pytest.raises(Stopped):
        for record in train(run, stop):
            seen.append((record.kind, record.step))
            if seen[-1] == ("step", 3):
                assert gate.entered.is_set()
                stop.signal_name = "SIGTERM"
                threading.Timer(0.3, gate.open.set).start()
    assert seen[-3:] == [("checkpoint", 2), ("checkpoint", 3), ("end", 3)]
    for saved in checkpoint.listed(run.checkpoints):
        checkpoint.verify(saved.path)
    assert [s.step for s in checkpoint.listed(run.checkpoints)] == [2, 3]


def test_divergence_during_a_write_completes_it(small_config, open_run, gate):
    run = open_run(small_config(**NO_VALIDATION, run__save_every="2 steps"))
    seen = []
    with pytest.raises(DivergedError):
        for record in train(run, StopRequest()):
            seen.append((record.kind, record.step))
            if seen[-1] == ("step", 3):
                with torch.no_grad():
                    next(run.parts.model.parameters()).fill_(torch.nan)
                threading.Timer(0.3, gate.open.set).start()
    assert seen[-1] == ("checkpoint", 2)
    assert [s.step for s in checkpoint.listed(run.checkpoints)] == [2]
    assert all(t.isfinite().all() for t in model_in(run.checkpoints / "step-0000000002").values())


def test_closing_the_records_completes_the_write(small_config, open_run, gate):
    run = open_run(small_config(**NO_VALIDATION, run__save_every="2 steps"))
    training = train(run, StopRequest())
    assert isinstance(training, Generator)
    for record in training:
        if (record.kind, record.step) == ("step", 3):
            break
    threading.Timer(0.3, gate.open.set).start()
    training.close()
    assert [s.step for s in checkpoint.listed(run.checkpoints)] == [2]


def test_best_is_noted_when_its_step_is_saved(small_config, open_run):
    run = open_run(small_config(run__save_every="9 epochs"))
    saves = [r for r in train(run, StopRequest()) if r.kind == "checkpoint"]
    best = [r for r in saves if r.values["is_best"]]
    noted = json.loads((run.checkpoints / "best.json").read_text())
    assert noted["step"] == best[-1].step == run.progress.best_step
    assert noted["top1"] == run.progress.best_top1


def test_host_copy_is_unaffected_by_later_changes_and_keeps_the_layout():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    before = weight.clone()
    copy = HostCopy({"w": weight, "step": torch.tensor(3.0)})
    weight.zero_()
    taken = copy.take()
    assert torch.equal(taken["w"], before)
    assert taken["w"].is_contiguous(memory_format=torch.channels_last)
    assert copy.take() == {}


def test_without_device_memory_for_a_copy_a_warning_is_recorded(
    small_config, open_run, monkeypatch
):
    def full(tensor):
        raise torch.OutOfMemoryError("no memory")

    class CopyWithoutMemory(HostCopy):
        def __init__(self, tensors):
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "clone", full)
                super().__init__(tensors)

    monkeypatch.setattr(saving, "HostCopy", CopyWithoutMemory)
    config = small_config(**NO_VALIDATION, run__save_every="1 steps", schedule__epochs=1)
    run = open_run(config, max_steps=2)
    records = list(train(run, StopRequest()))
    warned = [r.values["message"] for r in records if r.kind == "warning"]
    assert len(warned) == 1
    assert "no device memory" in warned[0]
    newest = model_in(run.checkpoints / "step-0000000002")
    assert all(torch.equal(newest[k], v) for k, v in run.parts.model.state_dict().items())
