"""Damaged checkpoints: bytes flipped, files cut short or grown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.files import Snapshot

FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")
FULL = os.environ.get("FAULTS") == "full"
Damage = Callable[[bytes], bytes]


def flipped(at: int, bit: int = 0) -> Damage:
    return lambda content: content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def cut(at: int) -> Damage:
    return lambda content: content[:at]


def zeroed(start: int, end: int) -> Damage:
    return lambda content: content[:start] + bytes(end - start) + content[end:]


def grown(content: bytes) -> bytes:
    return content + b"\0"


def regions(size_bytes: int) -> list[int]:
    """Start, header, middle and end."""
    return [0, min(40, size_bytes // 4), size_bytes // 2, size_bytes - 2]


def every_way(size_bytes: int, is_manifest: bool, full: bool) -> Iterator[Damage]:
    """Every byte flipped and every length cut to; in the short form every seventh."""
    stride = 1 if full else 7
    for at in range(0, size_bytes, stride):
        for bit in range(8) if full else (at % 8,):
            yield flipped(at, bit)
    # The manifest's last byte is a line break: without it, it still says the same.
    for at in range(0, size_bytes - is_manifest, stride):
        yield cut(at)
    yield grown


def small_snapshot(value: float) -> Snapshot:
    return Snapshot(
        model={"w": torch.full((3, 2), value), "running": torch.tensor(7)},
        model_header={"model": "tiny"},
        state={"optim.w.momentum_buffer": torch.arange(6.0).reshape(3, 2)},
        meta={"progress": {"step": 1}, "lr": 0.125},
    )


@pytest.mark.timeout(900)
def test_any_byte_of_a_checkpoint(tmp_path: Path, full: bool, seen) -> None:
    """A bit flipped in any byte of any file of a small checkpoint, or the file cut there."""
    checkpoint.save(tmp_path, 1, small_snapshot(1.0))
    newest = checkpoint.save(tmp_path, 2, small_snapshot(2.0)).path
    tried = 0
    for name in FILES:
        file = newest / name
        whole = file.read_bytes()
        for damage in every_way(len(whole), name == "manifest.json", full):
            file.write_bytes(damage(whole))
            saved, warnings = checkpoint.find("auto", tmp_path)
            assert saved is not None
            assert saved.step == 1, f"{name}: damage went unseen"
            assert len(warnings) == 1
            assert str(newest) in warnings[0]
            tried += 1
        file.write_bytes(whole)
    saved, warnings = checkpoint.find("auto", tmp_path)
    assert saved is not None
    assert (saved.step, warnings) == (2, [])
    seen("found each time; `--resume auto` takes the checkpoint before and names the damage", tried)


SAVING = ("--training-only", "--save-every=2 steps")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(arguments, finished, jobs_of_session) -> Path:
    """A real run's folder, checkpoints at steps 4, 6 and 8; kept for the module."""
    if not finished.exists():
        jobs_of_session.run(arguments, finished, *SAVING)
    return finished


@pytest.mark.timeout(900)
def test_any_region_of_a_real_checkpoint(run: Path, full: bool, seen) -> None:
    """Start, header, middle and end of each file of ResNet-18's checkpoint damaged."""
    folder = run / "checkpoints"
    before, newest = checkpoint.listed(folder)[-2:]
    tried = 0
    for name in FILES:
        file = newest.path / name
        whole = file.read_bytes()
        size_bytes = len(whole)
        places = regions(size_bytes) if full else regions(size_bytes)[1:3]
        damages = [d(at) for at in places for d in ((flipped, cut) if full else (flipped,))]
        damages += [cut(0), zeroed(size_bytes // 2, size_bytes)]
        for damage in damages:
            file.unlink()  # never through the same inode: a link would damage both
            file.write_bytes(damage(whole))
            saved, warnings = checkpoint.find("auto", folder)
            assert saved == before
            assert len(warnings) == 1
            assert str(newest.path) in warnings[0]
            tried += 1
        file.write_bytes(whole)
    seen("found each time; `--resume auto` takes the checkpoint before and names the damage", tried)


@pytest.mark.parametrize("name", FILES if FULL else FILES[:1])
def test_a_run_goes_on_from_the_one_before(
    jobs, run: Path, arguments, learnt, seen, tmp_path: Path, name: str
) -> None:
    """The newest checkpoint of a run is damaged, and the run started again."""
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
    learnt.of(folder).assert_equal(learnt.of(run))
    seen("said so, went on from the one before, final weights bit for bit the same")


def test_no_whole_checkpoint_left(jobs, run: Path, arguments, seen, tmp_path: Path) -> None:
    """Every checkpoint of a run is damaged, and the run started again."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    files = sorted((folder / "checkpoints").glob("step-*/model.safetensors"))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(cut(len(content) // 2)(content))
    records = (folder / "metrics.jsonl").read_bytes()
    job = jobs.start(arguments, folder, "--resume=auto")
    assert job.finish() == 2
    (error,) = job.error_lines()
    assert error.startswith("error: no usable checkpoint in ")
    assert "model.safetensors does not match its hash" in error
    assert "remove the folder to start over" in error
    assert (folder / "metrics.jsonl").read_bytes() == records, "it started anew"
    seen("refused: `no usable checkpoint in …`, exit 2, nothing started anew", len(files))
