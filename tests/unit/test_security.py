"""Untrusted files execute nothing and write nothing outside; no secret is written to a file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification.cli.command_line import exit_with_one_line
from image_classification.cli.dataset import main as dataset_main
from image_classification.core.errors import CheckpointError
from image_classification.data.tools.prepare import ARCHIVES
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.files import Snapshot
from image_classification.models.weights import load_model, read_header
from tests.support.cli import launch as main

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_EXAMPLEtokenEXAMPLEtokenEXAMPLE",
    "WANDB_API_KEY": "0123456789abcdefEXAMPLE0123456789abcdef",
}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def malicious(kind: str, target: Path) -> bytes:
    if kind == "pickle":
        return pickle.dumps(Bomb(target))
    content = io.BytesIO()
    is_zip = kind == "torch.save"
    torch.save({"w": Bomb(target)}, content, _use_new_zipfile_serialization=is_zip)
    return content.getvalue()


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Return the folder that an executed pickle creates."""
    target = tmp_path / "it-ran"
    pickle.loads(malicious("pickle", target))
    assert target.is_dir(), "the pickle is harmless: these tests would test nothing"
    target.rmdir()
    return target


def dataset(argv: list[str]) -> int:
    return exit_with_one_line(lambda words: dataset_main([*words]), argv)


@pytest.fixture
def fails(capfd):
    """Run ``main(argv)``, which must end with exit code 2 and one line; return the line."""

    def run(command, *argv: object) -> str:
        assert command([str(a) for a in argv]) == 2
        err = capfd.readouterr().err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line

    return run


KINDS = ("pickle", "torch.save", "torch.save before 1.6")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_not_executed(
    tmp_path, ran, fails, kind, name, small_arguments
):
    """The hash is right, so that only the reader can refuse the file."""
    snapshot = Snapshot({"w": torch.ones(2)}, {}, {}, {"progress": {"step": 1}})
    saved = checkpoint.save(tmp_path / "run" / "checkpoints", 1, snapshot).path
    content = malicious(kind, ran)
    (saved / name).write_bytes(content)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    checkpoint.verify(saved)
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        checkpoint.load(saved)
    arguments = [*small_arguments, f"--workspace={tmp_path / 'run'}"]
    assert str(saved) in fails(main, *arguments, "--resume=auto")
    elsewhere = [*small_arguments, f"--workspace={tmp_path / 'other'}"]
    assert str(saved) in fails(main, *elsewhere, f"--resume={saved}")
    assert not ran.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.pt"])
def test_pickled_weights_are_not_executed(tmp_path, ran, fails, kind, name, small_arguments):
    path = tmp_path / name
    path.write_bytes(malicious(kind, ran))
    arguments = [*small_arguments, f"--workspace={tmp_path / 'run'}"]
    assert str(path) in fails(main, *arguments, f"--pretrained-from-file={path}")
    for read in (load_model, read_header):
        with pytest.raises(CheckpointError):
            read(path)
    assert not ran.exists()


def laughs(levels: int) -> str:
    """Nine aliases per level: 9**levels values from a few hundred bytes."""
    lines = ["a0: &a0 [" + ", ".join(["ha"] * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int) -> str:
    """The same with merge keys: each level merges the one before many times."""
    lines = ["m0: &m0 {k: 1}"]
    for n in range(1, levels):
        lines += [f"m{n}: &m{n}", "  <<: [" + ", ".join([f"*m{n - 1}"] * 9) + "]"]
    return "\n".join(lines) + "\n"


HOSTILE_YAML = {
    "apply": "a: !!python/object/apply:os.mkdir ['RAN']\n",
    "new": "a: !!python/object/new:os.mkdir ['RAN']\n",
    "module": "a: !!python/module:antigravity\n",
    "name": "!!python/name:os.system : 1\n",
    "laughs": laughs(12),
    "laughs in place": laughs(12).replace("a11:", "platforms:"),
    "merges": merges(12),
    "nested lists": "a: " + "[" * 50_000 + "]" * 50_000 + "\n",
    "nested mappings": "a: " + "{b: " * 20_000 + "1" + "}" * 20_000 + "\n",
    "long": "a: 1\n" + "# filler\n" * 2_000_000,
    "many digits": "a: " + "9" * 100_000 + "\n",
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_a_hostile_configuration_is_refused_at_once(tmp_path, ran, fails, what):
    path = tmp_path / "configs.yml"
    path.write_text(HOSTILE_YAML[what].replace("RAN", str(ran)))
    names = ["--model=resnet18", "--precision=FP32", "--mode=convergence", "--platform=CPU"]
    started = time.monotonic()
    line = fails(main, *names, f"--cfg_file={path}", "--explain")
    assert time.monotonic() - started < 10.0
    assert len(line) < 1000
    assert "configs.yml" in line
    assert not ran.exists()


def tar_with(path: Path, info: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w") as archive:
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../../outside.JPEG"),
        member("/tmp/outside-of-the-test.JPEG"),
        member("n01440764", tarfile.SYMTYPE, "/tmp"),
        member("n01440764.tar", tarfile.LNKTYPE, "/etc/passwd"),
        member("n01440764.tar", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_preparing_a_hostile_archive_writes_nothing_outside(tmp_path, fails, info):
    source, out = tmp_path / "a" / "b" / "source", tmp_path / "a" / "b" / "out"
    source.mkdir(parents=True)
    is_file = info.type == tarfile.REGTYPE
    tar_with(source / ARCHIVES["train"], info, b"x" if is_file else b"")
    before = tree(tmp_path)
    line = fails(dataset, "prepare", source, "-o", out)
    assert info.name in line
    after = {path for path in tree(tmp_path) - before if out not in (path, *path.parents)}
    assert after == set()
    assert not [path for path in out.rglob("*") if not path.is_dir()]
    assert not Path("/tmp/outside-of-the-test.JPEG").exists()


def test_packing_a_hostile_shard_writes_nothing(tmp_path, fails):
    """A shard is read as a data set only: names, links and pickles in it lead nowhere."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    tar_with(source / "train-000000.tar", member("../outside.jpg"), b"\xff\xd8")
    line = fails(dataset, "pack", source, "-o", out, "--format", "tfrecord")
    assert "leads out of the shard" in line
    assert not (tmp_path / "outside.jpg").exists()


@pytest.mark.parametrize("address", ["pipe:mkdir RAN", "pipe:cat x.tar", "http://127.0.0.1:9/x"])
def test_addresses_and_commands_are_not_data_sets(tmp_path, ran, fails, address, small_arguments):
    address = address.replace("RAN", str(ran))
    named = [address if a.startswith("/") else a for a in small_arguments]
    line = fails(main, *named, f"--workspace={tmp_path / 'run'}")
    assert "no data set at" in line
    assert not ran.exists()


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.slow
def test_secrets_of_the_environment_are_not_written(tmp_path, monkeypatch, small_arguments, capfd):
    """Variables of the launcher are read; none is copied."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    more = ["--save-every=2 steps", "--raport-file=raport.json", "--set=schedule.epochs=1"]
    arguments = [*small_arguments, "--set=schedule.warmup_epochs=0", *more]
    assert main([*arguments, f"--workspace={folder}"]) == 0
    printed = capfd.readouterr()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"report.json", "config.yml", "metrics.jsonl", "model.safetensors"} <= {
        path.name for path in files
    }
    assert all((path.stat().st_size > 0) or path.name == ".lock" for path in files)
    for name, value in SECRETS.items():
        for text in (name, value):
            assert text not in printed.out + printed.err
            assert [p for p in files if text.encode() in p.read_bytes()] == []
    shutil.rmtree(folder)
