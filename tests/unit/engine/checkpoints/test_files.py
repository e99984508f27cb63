"""Checkpoints on disk: whole or absent, hashed, rotated, never pickled."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification.core.errors import CheckpointError, WorkspaceError
from image_classification.core.files import explained
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.files import Snapshot
from image_classification.engine.checkpoints.restore import restore_optimizer
from image_classification.engine.checkpoints.save import optimizer_state


def snapshot(value: float = 1.0) -> Snapshot:
    return Snapshot(
        model={"w": torch.full((3, 2), value), "running": torch.tensor(7)},
        model_header={"model": "tiny"},
        state={"optim.w.momentum_buffer": torch.arange(6.0).reshape(3, 2)},
        meta={"progress": {"step": 1}, "lr": 0.125},
    )


def test_round_trip_is_bit_equal(tmp_path):
    saved = checkpoint.save(tmp_path, 12, snapshot(0.1))
    assert saved.path.name == "step-0000000012"
    found = checkpoint.load(saved.path)
    assert torch.equal(found.model["w"], torch.full((3, 2), 0.1))
    assert found.model["running"].dtype == torch.int64
    assert torch.equal(found.state["optim.w.momentum_buffer"], torch.arange(6.0).reshape(3, 2))
    assert found.meta["lr"] == 0.125


def test_files_of_a_checkpoint_are_not_pickles(tmp_path):
    saved = checkpoint.save(tmp_path, 1, snapshot())
    names = {p.name for p in saved.path.iterdir()}
    assert names == {"model.safetensors", "state.safetensors", "state.json", "manifest.json"}
    for path in saved.path.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_channels_last_weights_round_trip(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    saved = checkpoint.save(tmp_path, 1, Snapshot({"w": weight}, {}, {}, {}))
    assert torch.equal(checkpoint.load(saved.path).model["w"], weight)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_named(tmp_path, name, damage):
    path = checkpoint.save(tmp_path, 1, snapshot()).path
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x01
        file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(path) in caught.value.message


def test_missing_target_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.find(str(tmp_path / "absent"), tmp_path)


def test_auto_takes_the_newest_by_step_not_by_time(tmp_path):
    checkpoint.save(tmp_path, 20, snapshot())
    checkpoint.save(tmp_path, 3, snapshot())
    os.utime(tmp_path / "step-0000000020", (0, 0))
    saved, warnings = checkpoint.find("auto", tmp_path)
    assert saved is not None
    assert saved.name == "step-0000000020"
    assert warnings == []


def test_auto_skips_a_damaged_checkpoint_with_a_warning(tmp_path):
    checkpoint.save(tmp_path, 1, snapshot())
    newest = checkpoint.save(tmp_path, 2, snapshot()).path
    (newest / "model.safetensors").write_bytes(b"")
    saved, warnings = checkpoint.find("auto", tmp_path)
    assert saved is not None
    assert saved.name == "step-0000000001"
    assert "step-0000000002" in warnings[0]


def test_auto_with_only_damaged_checkpoints_is_an_error(tmp_path):
    path = checkpoint.save(tmp_path, 2, snapshot()).path
    (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoint.find("auto", tmp_path)


def test_auto_in_a_new_run_finds_nothing(tmp_path):
    assert checkpoint.find("auto", tmp_path / "checkpoints") == (None, [])


def test_run_folder_means_its_newest_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "checkpoints", 5, snapshot())
    saved, _ = checkpoint.find(str(tmp_path), tmp_path / "elsewhere")
    assert saved is not None
    assert saved.name == "step-0000000005"


def test_failed_write_keeps_earlier_checkpoints_and_leaves_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, snapshot(1.0))

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write_json", full)
    with pytest.raises(WorkspaceError, match="no space left"):
        checkpoint.save(tmp_path, 2, snapshot(2.0))
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001"]
    assert checkpoint.load(tmp_path / "step-0000000001").model["w"][0, 0] == 1.0


def test_full_disk_is_one_error():
    # /dev/full gives the kernel's own error, without a file system of ours to fill.
    full = Path("/dev/full")
    with (
        pytest.raises(WorkspaceError, match="no space left"),
        explained(full, "write"),
        open(full, "wb") as file,
    ):
        file.write(b"\0" * 100_000)


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 1, snapshot(1.0))
    checkpoint.save(tmp_path, 1, snapshot(2.0))
    assert checkpoint.load(tmp_path / "step-0000000001").model["w"][0, 0] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001"]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, snapshot())
    checkpoint.rotate(tmp_path, keep=2, protect=(1,))
    assert [s.step for s in checkpoint.listed(tmp_path)] == [1, 4, 5]
    assert not list(tmp_path.glob(".*"))


def test_rotation_keeps_all_or_only_the_newest(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, snapshot())
    checkpoint.rotate(tmp_path, keep=-1)
    assert [s.step for s in checkpoint.listed(tmp_path)] == [1, 2, 3]
    checkpoint.rotate(tmp_path, keep=0)
    assert [s.step for s in checkpoint.listed(tmp_path)] == [3]


def test_best_step(tmp_path):
    assert checkpoint.best_step(tmp_path) is None
    saved = checkpoint.save(tmp_path, 4, snapshot())
    checkpoint.note_best(tmp_path, saved, 77.5)
    assert checkpoint.best_step(tmp_path) == 4
    assert json.loads((tmp_path / "best.json").read_text())["top1"] == 77.5
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        checkpoint.best_step(tmp_path)


@pytest.mark.parametrize("kind", ["sgd", "rmsprop"])
def test_optimizer_state_round_trip_in_channels_last(kind):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer: torch.optim.Optimizer
        if kind == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        else:
            optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer

    def step(model, optimizer):
        model(torch.ones(1, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    step(model, optimizer)
    tensors, numbers = optimizer_state(model, optimizer)
    tensors = {k: v.clone().contiguous() for k, v in tensors.items()}
    other, other_optimizer = make()
    other.load_state_dict(model.state_dict())
    restore_optimizer(other, other_optimizer, tensors, numbers)
    step(model, optimizer)
    step(other, other_optimizer)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_optimizer_state_of_another_model_is_refused():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="unknown 'ghost'"):
        restore_optimizer(model, optimizer, {"optim.ghost.momentum_buffer": torch.ones(1)}, {})
