"""Damaged checkpoints: flipped bits, truncated and extended files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.files import Snapshot
from tests.support.jobs import FinalState

FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")
FULL = os.environ.get("FAULTS") == "full"
Damage = Callable[[bytes], bytes]
DETECTED = "detected each time; `--resume auto` uses the previous checkpoint and names the damage"


def flipped(at: int, bit: int = 0) -> Damage:
    return lambda content: content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def truncated(at: int) -> Damage:
    return lambda content: content[:at]


def zeroed(start: int, end: int) -> Damage:
    return lambda content: content[:start] + bytes(end - start) + content[end:]


def extended(content: bytes) -> bytes:
    return content + b"\0"


def regions(size_bytes: int) -> list[int]:
    """Return offsets at the start, in the header, in the middle and at the end."""
    return [0, min(40, size_bytes // 4), size_bytes // 2, size_bytes - 2]


def all_damages(size_bytes: int, is_manifest: bool, full: bool) -> Iterator[Damage]:
    """Yield every bit flip and every truncation; in the short form of every seventh byte."""
    stride = 1 if full else 7
    for at in range(0, size_bytes, stride):
        for bit in range(8) if full else (at % 8,):
            yield flipped(at, bit)
    # The manifest without its last byte, a line break, is still valid.
    for at in range(0, size_bytes - is_manifest, stride):
        yield truncated(at)
    yield extended


def small_snapshot(value: float) -> Snapshot:
    return Snapshot(
        model={"w": torch.full((3, 2), value), "running": torch.tensor(7)},
        model_header={"model": "tiny"},
        state={"optim.w.momentum_buffer": torch.arange(6.0).reshape(3, 2)},
        meta={"progress": {"step": 1}, "lr": 0.125},
    )


@pytest.mark.timeout(900)
def test_any_byte_of_a_checkpoint(tmp_path: Path, full: bool, record_outcome) -> None:
    """Any bit of any file of a small checkpoint is flipped, or the file is truncated there."""
    checkpoint.save(tmp_path, 1, small_snapshot(1.0))
    newest = checkpoint.save(tmp_path, 2, small_snapshot(2.0)).path
    tried = 0
    for name in FILES:
        file = newest / name
        whole = file.read_bytes()
        for damage in all_damages(len(whole), name == "manifest.json", full):
            file.write_bytes(damage(whole))
            saved, warnings = checkpoint.find("auto", tmp_path)
            assert saved is not None
            assert saved.name == "step-0000000001", f"{name}: damage not detected"
            assert len(warnings) == 1
            assert str(newest) in warnings[0]
            tried += 1
        file.write_bytes(whole)
    saved, warnings = checkpoint.find("auto", tmp_path)
    assert saved is not None
    assert (saved, warnings) == (newest, [])
    record_outcome(DETECTED, tried)


SAVING = ("--training-only", "--save-every=2 steps")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(arguments, finished, jobs_of_session) -> Path:
    """Return the folder of a finished run with checkpoints at steps 4, 6 and 8."""
    if not finished.exists():
        jobs_of_session.run(arguments, finished, *SAVING)
    return finished


@pytest.mark.timeout(900)
def test_any_region_of_a_real_checkpoint(run: Path, full: bool, record_outcome) -> None:
    """Start, header, middle and end of each file of a ResNet-18 checkpoint are damaged."""
    folder = run / "checkpoints"
    previous, newest = checkpoint.listed(folder)[-2:]
    tried = 0
    for name in FILES:
        file = newest.path / name
        whole = file.read_bytes()
        size_bytes = len(whole)
        offsets = regions(size_bytes) if full else regions(size_bytes)[1:3]
        damages = [d(at) for at in offsets for d in ((flipped, truncated) if full else (flipped,))]
        damages += [truncated(0), zeroed(size_bytes // 2, size_bytes)]
        for damage in damages:
            file.unlink()  # a new inode: the file may be hard-linked
            file.write_bytes(damage(whole))
            saved, warnings = checkpoint.find("auto", folder)
            assert saved == previous.path
            assert len(warnings) == 1
            assert str(newest.path) in warnings[0]
            tried += 1
        file.write_bytes(whole)
    record_outcome(DETECTED, tried)


@pytest.mark.parametrize("name", FILES if FULL else FILES[:1])
def test_resume_uses_the_previous_checkpoint(
    jobs, run: Path, arguments, record_outcome, tmp_path: Path, name: str
) -> None:
    """The newest checkpoint of a run is damaged, and the run is resumed."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    newest = folder / "checkpoints" / "step-0000000008"
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(flipped(len(content) // 2)(content))
    job = jobs.run(arguments, folder, *SAVING, "--resume=auto")
    assert job.error_lines() == []
    start = [r for r in job.records() if r.kind == "start"][-1]
    assert start.values["start_step"] == 6
    assert any(r.kind == "warning" and str(newest) in r.values["message"] for r in job.records())
    FinalState.read(folder).assert_equal(FinalState.read(run))
    record_outcome("warned, resumed from the previous checkpoint, final weights bit-equal")


def test_all_checkpoints_damaged(
    jobs, run: Path, arguments, record_outcome, tmp_path: Path
) -> None:
    """Every checkpoint of a run is damaged, and the run is resumed."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    files = sorted((folder / "checkpoints").glob("step-*/model.safetensors"))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(truncated(len(content) // 2)(content))
    records = (folder / "metrics.jsonl").read_bytes()
    job = jobs.start(arguments, folder, "--resume=auto")
    assert job.wait() == 2
    (error,) = job.error_lines()
    assert error.startswith("error: no usable checkpoint in ")
    assert "model.safetensors does not match its hash" in error
    assert "remove the folder to start over" in error
    assert (folder / "metrics.jsonl").read_bytes() == records, "the run started over"
    record_outcome("refused: `no usable checkpoint in …`, exit 2, no new run started", len(files))
