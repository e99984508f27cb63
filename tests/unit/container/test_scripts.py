"""entrypoint.sh, build.sh and run.sh, with stubs of the programs they call."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

Run = Callable[..., subprocess.CompletedProcess[str]]
MakeStub = Callable[..., Path]


@pytest.fixture
def make_stub(tmp_path: Path) -> MakeStub:
    """Put a shell script called ``name`` first on PATH; it appends its arguments to a file."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, body: str = "") -> Path:
        log = tmp_path / f"{name}.calls"
        script = folder / name
        # One call per line, arguments separated by tabs.
        note = f"(IFS=$'\\t'; echo \"$*\") >> '{log}'"
        script.write_text(f"#!/bin/bash\n{note}\n{body}\n", encoding="utf-8")
        script.chmod(0o755)
        return log

    return make


@pytest.fixture
def run_script(tmp_path: Path) -> Run:
    """Run a script of the repository with the stubs first on PATH."""

    def run(
        script: str, *arguments: str, cwd: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("IMAGE")}
        return subprocess.run(
            ["bash", str(ROOT / script), *arguments],
            cwd=cwd,
            env={**keep, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def calls(log: Path) -> list[list[str]]:
    """Return the arguments of each call of a stub."""
    return [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []


DEMO = ["--model", "resnet50", "--precision", "AMP", "--mode", "convergence", "--platform", "CPU"]

# Answers like an engine that has the image, with a digest.
DOCKER = """case "$*" in
  "image inspect --format"*) echo example/base@sha256:0123 ;;
esac"""


def entrypoint(run_script: Run, log: Path, *arguments: str) -> list[list[str]]:
    done = run_script("docker/entrypoint.sh", *arguments)
    assert done.returncode == 0, done.stderr
    return calls(log)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], ["/workspace/launch.py", "--help"]),
        (["--list", "runs"], ["/workspace/launch.py", "--list", "runs"]),
        (["launch.py", "--model", "a b"], ["/workspace/launch.py", "--model", "a b"]),
        (["python", "launch.py", "-h"], ["launch.py", "-h"]),
        (["doctor", "--json"], ["-m", "image_classification", "doctor", "--json"]),
        (["dataset", "demo", "/x"], ["-m", "image_classification", "dataset", "demo", "/x"]),
        (["report", "history"], ["-m", "image_classification", "report", "history"]),
        (["demo"], ["/workspace/launch.py", *DEMO]),
        (
            ["demo", "--model", "resnet18", "--platform=CPU"],
            ["/workspace/launch.py", "--model", "resnet18", "--platform=CPU", *DEMO[2:6]],
        ),
    ],
)
def test_entrypoint_command(
    arguments: list[str], command: list[str], make_stub: MakeStub, run_script: Run
) -> None:
    check, command_line = entrypoint(run_script, make_stub("python"), *arguments)
    assert check[:2] == ["-m", "image_classification.cli.container_start"]
    assert command_line == command
    # The check gets the command that is then executed.
    assert check[2:] == ["python", *command]


def test_entrypoint_executes_other_commands_unchanged(make_stub: MakeStub, run_script: Run) -> None:
    make_stub("python")
    done = run_script("docker/entrypoint.sh", "bash", "-c", "echo $0 $1; exit 9", "a b", "c")
    assert (done.returncode, done.stdout) == (9, "a b c\n")


def test_entrypoint_stops_when_the_check_refuses(make_stub: MakeStub, run_script: Run) -> None:
    log = make_stub("python", "echo banner; exit 2")
    done = run_script("docker/entrypoint.sh", "launch.py")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "banner\n")
    assert len(calls(log)) == 1


def test_build_arguments_and_tags(make_stub: MakeStub, run_script: Run) -> None:
    log = make_stub("docker", DOCKER)
    secret = (
        'case "$*" in remote*) echo https://me:secret@example.org/a.git ;; *) echo c0ffee; esac'
    )
    make_stub("git", secret)
    done = run_script("scripts/docker/build.sh", "H100", "--no-cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "image-classification:ngc"
    build = calls(log)[-1]
    assert build[0] == "build" and build[-2:] == ["--no-cache", "."]
    given = [build[i + 1] for i, word in enumerate(build) if word == "--build-arg"]
    assert "FROM_IMAGE_NAME=nvcr.io/nvidia/pytorch:26.09-py3" in given
    assert "BASE_DIGEST=sha256:0123" in given
    assert "IMAGE_REVISION=c0ffee" in given
    assert "IMAGE_SOURCE=https://example.org/a.git" in given
    tags = [build[i + 1] for i, word in enumerate(build) if word == "--tag"]
    assert tags == ["image-classification:ngc", "image-classification:latest"]


def test_build_on_another_base(make_stub: MakeStub, run_script: Run) -> None:
    log = make_stub("docker", DOCKER)
    done = run_script(
        "scripts/docker/build.sh", "BI-V100x8", FROM_IMAGE_NAME="vendor/torch:1", IMAGE="ours"
    )
    assert done.returncode == 0, done.stderr
    build = calls(log)[-1]
    assert "FROM_IMAGE_NAME=vendor/torch:1" in build and "ours:custom" in build


@pytest.mark.parametrize(
    ("arguments", "body", "words"),
    [
        (["DGX1"], DOCKER, "no platform 'DGX1'"),
        (["BI-V100x8"], DOCKER, "set FROM_IMAGE_NAME"),
        (["CPU"], "exit 1", "python:3.11-slim-bookworm cannot be pulled"),
    ],
)
def test_build_errors(
    arguments: list[str], body: str, words: str, make_stub: MakeStub, run_script: Run
) -> None:
    make_stub("docker", body)
    done = run_script("scripts/docker/build.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and words in done.stderr


def run_options(log: Path) -> list[str]:
    (run,) = [call for call in calls(log) if call[0] == "run"]
    return run


def test_run_is_unprivileged_and_mounts_folders(
    make_stub: MakeStub, run_script: Run, tmp_path: Path
) -> None:
    log = make_stub("docker")
    make_stub("nvidia-smi", "exit 9")
    data = tmp_path / "data"
    data.mkdir()
    done = run_script(
        "scripts/docker/run.sh", "CPU", "launch.py", "--x", "a b", cwd=tmp_path, DATA=str(data)
    )
    assert done.returncode == 0, done.stderr
    options = run_options(log)
    assert options[-4:] == ["image-classification:slim", "launch.py", "--x", "a b"]
    assert f"{tmp_path}/runs:/workspace/runs" in options
    assert f"{data}:/imagenet:ro" in options
    assert f"{os.getuid()}:{os.getgid()}" in options
    for option in ("--ipc=host", "--read-only", "--rm", "memlock=-1", "stack=67108864"):
        assert option in options
    assert "--gpus" not in options and "--tty" not in options
    assert (tmp_path / "runs").is_dir()


def test_run_passes_gpus(make_stub: MakeStub, run_script: Run, tmp_path: Path) -> None:
    log = make_stub("docker", "[[ $1 != create ]] || echo probe")
    make_stub("nvidia-smi", "echo GPU 0")
    run_script(
        "scripts/docker/run.sh", "H100", "doctor", cwd=tmp_path, DOCKER_OPTIONS="--network host"
    )
    options = run_options(log)
    assert options[options.index("--gpus") + 1] == "all"
    assert options[options.index("--network") + 1] == "host"
    assert options[-2:] == ["image-classification:ngc", "doctor"]
    # The container of the probe is removed.
    assert ["rm", "--force", "probe"] in calls(log)


def test_run_on_an_engine_without_an_option(
    make_stub: MakeStub, run_script: Run, tmp_path: Path
) -> None:
    log = make_stub("docker", 'case "$*" in create*memlock*) exit 1; esac')
    make_stub("nvidia-smi", "exit 9")
    done = run_script("scripts/docker/run.sh", "doctor", cwd=tmp_path)
    assert done.stderr.startswith("note: this engine does not allow --ulimit memlock=-1")
    assert "memlock=-1" not in run_options(log)
    make_stub("nvidia-smi", "echo GPU 0")
    make_stub("docker", 'case "$*" in create*gpus*) exit 1; esac')
    done = run_script("scripts/docker/run.sh", "doctor", cwd=tmp_path)
    assert done.returncode == 2 and "container toolkit" in done.stderr


@pytest.mark.parametrize(
    ("body", "variables", "words"),
    [
        ("exit 1", {}, "there is no image image-classification:latest"),
        ("", {"DATA": "/no/such/folder"}, "DATA=/no/such/folder is not a folder"),
    ],
)
def test_run_errors(
    body: str,
    variables: dict[str, str],
    words: str,
    make_stub: MakeStub,
    run_script: Run,
    tmp_path: Path,
) -> None:
    make_stub("docker", body)
    make_stub("nvidia-smi", "exit 9")
    done = run_script("scripts/docker/run.sh", "doctor", cwd=tmp_path, **variables)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and words in done.stderr
