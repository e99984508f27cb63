"""Two containers on one network train one model."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from image_classification.reporting.sinks import read_metrics
from tests.image.containers import ROOT, SMALL_RUN, Engine, losses, mounts, report

EPOCH = ["--set", "run.stop_epoch=1", "--set", "run.log_every_steps=1", "--workers", "0"]


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    name = f"ic-test-{uuid.uuid4().hex[:12]}"
    made = engine.call("network", "create", name)
    if made.returncode:
        pytest.skip(f"this engine cannot create networks: {made.stderr.strip()}")
    yield name
    engine.remove_all()
    engine.call("network", "rm", name)


def test_torchrun_in_two_containers_trains_like_one_process(
    engine: Engine, runs: Path, photographs: Path, network: str
) -> None:
    options = [*mounts(runs, photographs), "--env", "OMP_NUM_THREADS=1", "--network", network]
    half = [word.replace("per_device=16", "per_device=8") for word in SMALL_RUN]
    half = [word.replace("lr=0.05", "lr=0.002") for word in half]
    one = [*half, *EPOCH, "--workspace", "runs/one"]
    assert engine.run(*one, options=options).returncode == 0
    nodes = []
    for rank in range(2):
        host = f"ic-node{rank}-{network}"
        torchrun = (
            f"torchrun --nnodes=2 --node-rank={rank} --nproc-per-node=1 "
            f"--master-addr=ic-node0-{network} --master-port=29500"
        )
        nodes.append(
            engine.start(
                *shlex.split(torchrun),
                *[*half, *EPOCH, "--workspace", "runs/two"],
                options=[*options, "--hostname", host, "--network-alias", host],
            )
        )
    codes = [engine.wait(node) for node in nodes]
    assert codes == [0, 0], "\n".join(engine.logs(node) for node in nodes)
    found = report(runs / "two")
    assert found["config"]["batch"]["accumulation"] == 2
    assert found["results"]["validation"]["images"] == 50
    assert len(losses(runs / "two")) == 8
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-4)


def test_compose_file(engine: Engine, runs: Path) -> None:
    compose = shutil.which("docker-compose")
    plugin = engine.call("compose", "version").returncode == 0
    if not plugin and compose is None:
        pytest.skip("docker compose is not installed")
    command = [engine.client, "compose"] if plugin else [str(compose)]
    file = ["--file", str(ROOT / "scripts" / "docker" / "compose.yml")]
    project = ["--project-name", f"ic-test-{uuid.uuid4().hex[:12]}"]
    names = "--model resnet18 --precision FP32 --mode convergence --platform CPU demo"
    environment = {
        **os.environ,
        "IMAGE": engine.image,
        "RUNS": str(runs),
        "COMMAND": f"{names} --workspace runs/two --prof 3",
    }
    try:
        up = subprocess.run(
            [*command, *file, *project, "up", "--no-color"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert up.returncode == 0, up.stdout + up.stderr
        assert up.stdout.count("exited with code 0") == 2, up.stdout
        assert report(runs / "two")["results"]["train"]["steps"] == 3
        (start,) = (r for r in read_metrics(runs / "two" / "metrics.jsonl") if r.kind == "start")
        assert start.values["world_size"] == 2
        gpus = ["--file", str(ROOT / "scripts" / "docker" / "compose.gpu.yml")]
        both = subprocess.run(
            [*command, *file, *gpus, "config"],
            env={**environment, "DATA": "/data/imagenet"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert both.returncode == 0, both.stderr
        nodes = yaml.safe_load(both.stdout)["services"]
        for rank in range(2):
            (gpu,) = nodes[f"node{rank}"]["deploy"]["resources"]["reservations"]["devices"]
            assert gpu["device_ids"] == [str(rank)]
            assert len(nodes[f"node{rank}"]["volumes"]) == 2
    finally:
        subprocess.run(
            [*command, *file, *project, "down"], env=environment, capture_output=True, check=False
        )
