"""Commands in the container: stdout, exit codes and signals."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.image.containers import LOCKED_DOWN, Engine, mounts


def test_help_is_the_default(engine: Engine) -> None:
    done = engine.run()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert done.stdout == engine.run("launch.py", "--help").stdout
    assert done.stdout == engine.run("python", "launch.py", "--help").stdout


def test_banner_is_on_stderr(engine: Engine) -> None:
    done = engine.run("--list", "runs", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)
    for part in ("image-classification ", "software", "torch 2.", "sm_70", "DALI", "gpus", "data"):
        assert part in done.stderr
    names = "launch.py --model resnet50 --precision AMP --mode convergence --platform DGX1V"
    explained = engine.run("python", *names.split(), "--explain", "--json")
    assert json.loads(explained.stdout)["config"]["batch"]["global"] == 2048


def test_demo_is_resnet50_in_mixed_precision(engine: Engine) -> None:
    explained = engine.run("demo", "--explain", "--json")
    assert explained.returncode == 0, explained.stderr
    config = json.loads(explained.stdout)["config"]
    assert config["model"]["name"] == "resnet50"
    assert config["precision"]["name"] == "AMP"
    assert config["platform"]["name"] == "CPU"


def test_doctor_passes(engine: Engine, runs: Path) -> None:
    done = engine.run("doctor", "--platform", "CPU", "--json", options=mounts(runs))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, [c for c in checks.values() if c["status"] == "fail"]
    assert checks["container"]["found"].startswith("docker")
    assert "read-only" in checks["container"]["found"]
    for name in ("torch", "dali-cpu", "gloo", "user", "home"):
        assert checks[name]["status"] == "ok", checks[name]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["python", "-c", "raise SystemExit(7)"], 7),
        (["bash", "-c", "exit 75"], 75),
        (["launch.py", "--model", "resnet51"], 2),
        (["no-such-command"], 127),
    ],
)
def test_exit_code_of_the_command(engine: Engine, command: list[str], code: int) -> None:
    assert engine.run(*command).returncode == code


def test_docker_stop_ends_a_command_without_signal_handlers(engine: Engine) -> None:
    # As process 1 it would not end: the kernel drops signals that process 1 has no handler for.
    name = engine.start("python", "-c", "print('up', flush=True); import time; time.sleep(600)")
    deadline = time.monotonic() + 60
    while "up" not in engine.logs(name) and time.monotonic() < deadline:
        time.sleep(0.1)
    engine.checked("stop", "-t", "60", name)
    assert engine.wait(name) == 128 + 15


def test_run_is_refused_with_docker_default_shared_memory(engine: Engine) -> None:
    flags = [flag for flag in LOCKED_DOWN if flag != "--ipc=host"]
    names = "--model resnet18 --precision FP32 --mode convergence --platform CPU"
    run = ["launch.py", *names.split()]
    refused = engine.run(*run, flags=flags)
    assert refused.returncode == 2
    error = refused.stderr.splitlines()[-1]
    assert error.startswith("error: shared-memory") and "--ipc=host" in error
    assert engine.run(*run, "--explain", flags=flags).returncode == 0
    more = engine.run(*run, "--workspace", "/nowhere", flags=[*flags, "--shm-size=1g"])
    assert more.returncode == 2 and "shared-memory" not in more.stderr.splitlines()[-1]
    anyway = ["--env", "IMAGE_CLASSIFICATION_CHECKS=warn"]
    warned = engine.run(*run, "--workspace", "/nowhere", flags=flags, options=anyway)
    assert warned.returncode == 2 and "/nowhere" in warned.stderr.splitlines()[-1]
