"""Training in containers: another user, a read-only root, stopping, resuming, torch.compile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.image.containers import SMALL_RUN, Engine, losses, mounts, report, wait_for_step

ONE_EPOCH = ["--set", "run.stop_epoch=1"]


def newest(run: Path) -> Path:
    """Return the folder of the newest checkpoint."""
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def assert_same_weights(one: Path, other: Path) -> None:
    """Assert that the newest checkpoints are of the same step with bit-equal weights."""
    assert newest(one).name == newest(other).name
    first, second = (load_file(newest(run) / "model.safetensors") for run in (one, other))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_demo_as_a_user_without_passwd_entry(engine: Engine, runs: Path) -> None:
    # The demo command with a smaller network, smaller images and fewer epochs, in FP32: bfloat16
    # without instructions for it is ten times slower.
    small = "--model resnet18 --precision FP32 --epochs 2 --set data.image_size=32"
    done = engine.run(
        *("demo", *small.split(), "--set", "data.resize=36", "--workspace", "runs/demo"),
        options=[*mounts(runs), "--user", "4321:8765"],
    )
    assert done.returncode == 0, done.stderr
    found = report(runs / "demo")
    assert found["results"]["validation"]["top1"] > 80
    assert "docker" in found["environment"]["container"]
    assert found["environment"]["git_commit"]
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in (runs / "demo").rglob("*")}
    assert owners == {(4321, 8765)}
    assert (runs / "demo" / "report.html").is_file()
    assert list((runs / "demo" / "plots").glob("*.png"))


@pytest.mark.parametrize("backend", ["pytorch", "dali-cpu"])
def test_read_only_data_set(engine: Engine, runs: Path, digits: Path, backend: str) -> None:
    before = sorted(digits.rglob("*"))
    done = engine.run(
        *SMALL_RUN,
        *ONE_EPOCH,
        *("--data-backend", backend, "--workers", "1", "--workspace", "runs/one"),
        options=mounts(runs, digits),
    )
    assert done.returncode == 0, done.stderr
    assert report(runs / "one")["results"]["validation"]["images"] == 100
    assert sorted(digits.rglob("*")) == before
    assert "/imagenet: manifest.json, train, val" in done.stderr


def test_stopped_mid_epoch_and_resumed_in_a_new_container(
    engine: Engine, runs: Path, digits: Path
) -> None:
    command = [*SMALL_RUN, "--set", "run.stop_epoch=1", "--set", "run.log_every_steps=1"]
    command += ["--workers", "1", "--resume", "auto"]
    options = [*mounts(runs, digits), "--env", "OMP_NUM_THREADS=1"]
    uninterrupted = engine.run(*command, "--workspace", "runs/uninterrupted", options=options)
    assert uninterrupted.returncode == 0, uninterrupted.stderr

    name = engine.start(*command, "--workspace", "runs/stopped", options=options)
    wait_for_step(runs / "stopped" / "metrics.jsonl", 5)
    engine.checked("stop", "-t", "120", name)
    assert engine.wait(name) == 75, engine.logs(name)
    step = int(newest(runs / "stopped").name.removeprefix("step-"))
    assert 5 <= step < 20, "stopped within the first epoch"

    resumed = engine.run(*command, "--workspace", "runs/stopped", options=options)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(runs / "stopped", runs / "uninterrupted")
    assert losses(runs / "stopped") == losses(runs / "uninterrupted")
    # A third start has nothing left to do and exits with 0.
    assert engine.run(*command, "--workspace", "runs/stopped", options=options).returncode == 0


def test_error_for_a_folder_of_another_user(engine: Engine, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can create a folder that the image's user cannot write")
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o755)
    done = engine.run("demo", options=mounts(foreign))
    assert done.returncode == 2
    assert "--user $(id -u):$(id -g)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not list(foreign.iterdir())


def test_torch_compile(engine: Engine) -> None:
    code = (
        "import torch; f = torch.compile(lambda x: (x.sin() + 1).sum()); x = torch.ones(64); "
        "torch.testing.assert_close(f(x), (x.sin() + 1).sum())"
    )
    done = engine.run("python", "-c", code, options=["--user", "4321:8765"])
    assert done.returncode == 0, done.stderr
