"""Checkpoints that cannot be written: earlier ones stay intact, an error or a warning."""

import errno
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import Record
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.engine.train import train
from image_classification.launch.workspace import locked
from tests.support.jobs import read_records

MIB = 1 << 20
OFTEN = {"run__validate": False, "run__save_every": "1 steps", "run__keep_checkpoints": 1}


def mount(*arguments):
    return subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def small_disk(tmp_path):
    """Mount a tmpfs of the given MiB; unmounted at the end of the test."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    with ExitStack() as stack:

        def make(size_mib):
            folder = tmp_path / "disk"
            folder.mkdir()
            done = mount("-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", folder)
            if done.returncode:
                pytest.skip(f"no mount here: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield make


def disk_for(small_disk, small_config, open_run, tmp_path, checkpoints):
    """Mount a disk with room for this number of checkpoints of the small run."""
    parts = open_run(small_config(), workspace=str(tmp_path / "measured")).parts
    # SGD keeps one momentum buffer for each parameter.
    tensors = [*parts.model.state_dict().values(), *parts.model.parameters()]
    return small_disk(round(sum(t.numel() * t.element_size() for t in tensors) * checkpoints / MIB))


def drive(run, seen):
    for record in train(run, StopRequest()):
        seen.append(record)
    return seen


def warnings_in(records):
    return [r.values["message"] for r in records if r.kind == "warning"]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.faults(
    "The disk is full at a save, found before or while writing",
    "refused: `no space left …`, earlier checkpoint intact, no partial checkpoint left",
)
@pytest.mark.parametrize("checked", [True, False], ids=["before", "while writing"])
def test_full_disk_ends_the_run_and_keeps_the_earlier_checkpoint(
    small_disk, small_config, open_run, tmp_path, monkeypatch, checked
):
    # Room for one and a half: the second does not fit, and the first is not deleted for it.
    disk = disk_for(small_disk, small_config, open_run, tmp_path, 1.5)
    if not checked:
        monkeypatch.setattr(checkpoint, "_check_free_space", lambda folder, snapshot: None)
    run = open_run(small_config(**OFTEN), workspace=str(disk))
    free_bytes = 0
    with pytest.raises(WorkspaceError, match="no space left") as caught:
        for record in train(run, StopRequest()):
            if record.kind == "checkpoint":
                free_bytes = shutil.disk_usage(disk).free
    assert "step-0000000001 is kept" in caught.value.message
    assert "\n" not in caught.value.message
    assert names(run.checkpoints) == ["step-0000000001"]
    checkpoint.verify(run.checkpoints / "step-0000000001")
    # The incomplete checkpoint was removed.
    assert shutil.disk_usage(disk).free == pytest.approx(free_bytes, abs=2 * MIB)


@pytest.mark.faults(
    "The disk is full at a save, with run.on_save_error=warn",
    "survived: a warning at each save, saved once there was space",
)
def test_full_disk_with_warn_saves_once_there_is_room(small_disk, small_config, open_run, tmp_path):
    disk = disk_for(small_disk, small_config, open_run, tmp_path, 2.5)
    ballast = disk / "ballast"
    config = small_config(**OFTEN, run__on_save_error="warn", schedule__epochs=2)
    run, records = open_run(config, workspace=str(disk)), []
    for record in train(run, StopRequest()):
        records.append(record)
        if record.kind == "checkpoint" and record.step == 1:
            free = shutil.disk_usage(disk).free
            ballast.write_bytes(b"\0" * (free - 4 * MIB))
        if record.kind == "step" and record.step == 5:
            assert [s.step for s in checkpoint.listed(run.checkpoints)] == [1]
            ballast.unlink()
    assert any("no space left" in message for message in warnings_in(records))
    assert all("is not saved" in message for message in warnings_in(records))
    assert records[-1].kind == "end"
    assert [s.step for s in checkpoint.listed(run.checkpoints)] == [8]


@pytest.mark.faults(
    "The disk is still full at the end, with run.on_save_error=warn",
    "refused: `no space left …`, results reported",
)
def test_full_disk_with_warn_is_an_error_at_the_end(small_disk, small_config, open_run, tmp_path):
    disk = disk_for(small_disk, small_config, open_run, tmp_path, 0.5)
    config = small_config(**OFTEN, run__on_save_error="warn")
    records: list[Record] = []
    run = open_run(config, workspace=str(disk), max_steps=2)
    with pytest.raises(WorkspaceError, match=r"no space left.*no checkpoint had been saved"):
        drive(run, records)
    assert records[-1].kind == "end"
    assert records[-1].values["results"]["train"]["steps"] == 2
    assert names(run.checkpoints) == []


@pytest.mark.faults(
    "The disk is full when a stop signal arrives",
    "refused: `no space left …`, never exit 75",
)
def test_full_disk_with_warn_is_an_error_at_a_stop_signal(
    small_disk, small_config, open_run, tmp_path
):
    disk = disk_for(small_disk, small_config, open_run, tmp_path, 0.5)
    config = small_config(**OFTEN, run__on_save_error="warn")
    run, stop = open_run(config, workspace=str(disk)), StopRequest()
    with pytest.raises(WorkspaceError, match="no space left"):
        for record in train(run, stop):
            if record.kind == "step" and record.step == 2:
                stop.signal_name = "SIGTERM"


@pytest.mark.faults(
    "The disk becomes read-only during training",
    "refused: `the file system is read-only …`, earlier checkpoint intact",
)
def test_read_only_disk_is_one_error(small_disk, small_config, open_run, tmp_path):
    disk = disk_for(small_disk, small_config, open_run, tmp_path, 4)
    run = open_run(small_config(**OFTEN, schedule__epochs=2), workspace=str(disk))
    with pytest.raises(WorkspaceError, match="the file system is read-only"):
        for record in train(run, StopRequest()):
            if record.kind == "checkpoint" and record.step == 4:
                made = mount("-o", "remount,ro", disk)
                assert made.returncode == 0, made.stderr
    # Step 4 closes an epoch and step 5's save was the first on the read-only disk.
    assert checkpoint.listed(run.checkpoints)[-1].step >= 4
    checkpoint.verify(checkpoint.listed(run.checkpoints)[-1].path)


class Broken:
    """Makes the given writes of ``state.json`` fail after the first byte."""

    def __init__(self, monkeypatch, code, saves):
        self.code, self.saves, self.tried = code, saves, 0
        self._write = checkpoint._write_json
        monkeypatch.setattr(checkpoint, "_write_json", self)

    def __call__(self, path, value):
        if path.name == checkpoint.META:
            self.tried += 1
            if self.tried in self.saves:
                path.write_text("{")
                raise OSError(self.code, os.strerror(self.code))
        self._write(path, value)


@pytest.mark.faults(
    "A quota, an I/O error or a full disk interrupts the write of a checkpoint",
    "refused at the next step with the system's reason, earlier checkpoint intact",
)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EIO, "Input/output error"),
        (errno.ENOSPC, "no space left"),
    ],
)
def test_write_error_is_raised_at_a_step_boundary(small_config, open_run, monkeypatch, code, said):
    Broken(monkeypatch, code, saves={2})
    run = open_run(small_config(**OFTEN))
    seen: list[Record] = []
    with pytest.raises(WorkspaceError, match=said) as caught:
        drive(run, seen)
    assert "step-0000000002" in caught.value.message
    # Not at the end of the run: at the boundary after the failure, or where the next save came.
    assert seen[-1].step <= 3
    assert names(run.checkpoints) == ["step-0000000001"]
    checkpoint.verify(run.checkpoints / "step-0000000001")


@pytest.mark.faults(
    "I/O errors at two saves, with run.on_save_error=warn",
    "survived: a warning each, saved at the next step, final weights bit-equal",
)
@pytest.mark.slow
def test_write_error_with_warn_is_saved_at_the_next_step(small_config, open_run, monkeypatch):
    config = small_config(**OFTEN, schedule__epochs=1)
    good = open_run(config, workspace=config.run.workspace + "-good")
    drive(good, [])
    Broken(monkeypatch, errno.EIO, saves={2, 4})
    records: list[Record] = []
    run = open_run(config, on_save_error="warn")
    drive(run, records)
    warned = [(r.step, r.values["message"]) for r in records if r.kind == "warning"]
    assert [step for step, _ in warned] == [2, 4]
    assert "Input/output error" in warned[0][1]
    # Step 4, the last, failed once and was tried again at the end of the run.
    assert [r.step for r in records if r.kind == "checkpoint"] == [1, 3, 4]
    assert names(run.checkpoints) == ["step-0000000004"]
    for name, tensor in good.parts.model.state_dict().items():
        assert torch.equal(tensor, run.parts.model.state_dict()[name]), name


def test_best_is_noted_when_its_step_is_saved_at_the_second_try(
    small_config, open_run, monkeypatch
):
    Broken(monkeypatch, errno.EIO, saves={1})
    config = small_config(run__on_save_error="warn", schedule__epochs=1)
    run = open_run(config)
    drive(run, [])
    assert checkpoint.best_step(run.checkpoints) == run.progress.best_step == 4


def test_stop_after_a_failed_write_saves_again(small_config, open_run, monkeypatch):
    Broken(monkeypatch, errno.EIO, saves={2})
    run, stop = open_run(small_config(**OFTEN, run__on_save_error="warn")), StopRequest()
    with pytest.raises(Stopped):
        for record in train(run, stop):
            if record.kind == "step" and record.step == 3:
                stop.signal_name = "SIGTERM"
    assert [s.step for s in checkpoint.listed(run.checkpoints)] == [3]


def test_bug_in_the_writing_thread_is_raised(small_config, open_run, monkeypatch):
    def broken(folder, snapshot):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(checkpoint, "_write", broken)
    run = open_run(small_config(**OFTEN, run__on_save_error="warn"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        drive(run, [])
    assert names(run.checkpoints) == []


def small_snapshot(value=1.0):
    return checkpoint.Snapshot({"w": torch.full((2,), value)}, {}, {}, {"value": value})


def test_opening_a_run_removes_incomplete_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 3, small_snapshot())
    for name in (".tmp-0000000004-77", ".old-0000000002-77"):
        (folder / name).mkdir()
        (folder / name / checkpoint.MODEL).write_bytes(b"half")
    (folder / ".best.json.77.tmp").write_bytes(b"{")
    with locked(tmp_path):
        assert names(folder) == ["step-0000000003"]


def test_second_job_leaves_incomplete_checkpoints_of_a_running_one(tmp_path):
    folder = tmp_path / "checkpoints"
    with locked(tmp_path):
        (folder / ".tmp-0000000004-77").mkdir(parents=True)
        with pytest.raises(WorkspaceError, match="in use"), locked(tmp_path):
            pass
        assert names(folder) == [".tmp-0000000004-77"]


@pytest.mark.faults(
    "The run is killed between the two renames that replace a checkpoint",
    "survived: one of the two is intact and found",
)
def test_kill_between_the_renames_of_a_replacement(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 3, small_snapshot(1.0))
    rename, calls = os.rename, []

    class Killed(BaseException):
        pass

    def killed_at_the_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed_at_the_second)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(Killed):
        checkpoint.save(folder, 3, small_snapshot(2.0))
    assert checkpoint.listed(folder) == []
    monkeypatch.undo()
    with locked(tmp_path):
        assert names(folder) == ["step-0000000003"]
    assert checkpoint.load(folder / "step-0000000003").model["w"][0] == 1.0


def test_failed_rename_restores_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 3, small_snapshot(1.0))
    rename = os.rename

    def broken(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(WorkspaceError, match="Input/output error"):
        checkpoint.save(tmp_path, 3, small_snapshot(2.0))
    assert names(tmp_path) == ["step-0000000003"]
    assert checkpoint.load(tmp_path / "step-0000000003").model["w"][0] == 1.0


@pytest.fixture
def two_ranks(small_arguments):
    halves = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    settings = ["platform.num_devices=2", "run.save_every=1 steps", "run.validate=false"]
    return [*halves, *(f"--set={setting}" for setting in [*settings, "schedule.epochs=1"])]


@pytest.mark.faults(
    "The disk is full at a save with two ranks",
    "refused: all ranks end, one error line, earlier checkpoint intact",
)
@pytest.mark.slow
def test_full_disk_ends_every_rank_with_one_error(two_ranks, small_disk, jobs):
    disk = small_disk(8)
    job = jobs.start(two_ranks, disk)
    assert job.wait() == 2, job.stderr
    (error,) = job.error_lines()
    assert "no space left" in error
    assert "Traceback" not in job.stderr
    (left,) = checkpoint.listed(disk / "checkpoints")
    checkpoint.verify(left.path)
    assert str(left.path) in error


@pytest.mark.faults(
    "The disk is full at saves with two ranks, with run.on_save_error=warn",
    "trained to the end with a warning at each save, then an error",
)
@pytest.mark.slow
def test_full_disk_with_warn_ends_every_rank_at_the_end(two_ranks, small_disk, jobs):
    disk = small_disk(8)
    job = jobs.start(two_ranks, disk, "--set=run.on_save_error=warn")
    assert job.wait() == 2, job.stderr
    assert max(r.step for r in read_records(disk, "step")) == 4
    warned = [r.values["message"] for r in read_records(disk, "warning")]
    assert sum("is not saved" in message for message in warned) >= 2


@pytest.mark.slow
def test_every_save_of_two_ranks_is_recorded_once_and_complete(two_ranks, tmp_path, jobs):
    folder = tmp_path / "run"
    jobs.run(two_ranks, folder, "--set=run.keep_checkpoints=-1")
    records = read_records(folder, "checkpoint")
    assert [r.step for r in records] == [1, 2, 3, 4]
    for record in records:
        checkpoint.verify(Path(record.values["path"]))
        assert 0 <= record.values["waited_s"] <= record.values["stall_s"]
        assert record.values["stall_s"] <= record.values["time_s"] + 1
