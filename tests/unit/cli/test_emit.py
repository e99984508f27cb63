"""``--emit``: job files and commands that pass the arguments on unchanged."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from image_classification.cli.emit import render_emission, without_emit
from image_classification.cli.launch import EMIT_KINDS, parse
from image_classification.core.errors import ConfigError
from image_classification.reporting.sinks import read_metrics
from tests.conftest import STEM_CHANNELS
from tests.support.cli import launch as main

ROOT = Path(__file__).parents[3]
NAMES = ["--model", "resnet50", "--precision", "AMP", "--mode", "convergence", "--platform"]
NASTY = ["/data/image net", "--raport-file", 'it\'s $(HOME) $HOME `x` "q" $$.json']
OWN = ["--workspace", "runs/resnet50-DGXA100-AMP-250e-convergence", "--resume", "auto"]

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def emit(kind: str, *argv: str, script: str = "launch.py") -> str:
    request = parse([f"--emit={kind}", *argv])
    config = request.read().on()
    return render_emission(
        kind, config, ["--emit", kind, *argv], [script], config_file=request.config_file
    )


def write_program(folder: Path, name: str, code: str) -> None:
    """Put a Python program called ``name`` into ``folder``."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)


def with_programs(folder: Path, **variables: str) -> dict[str, str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return {**environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def shell(text: str, cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", text],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def shown(done: subprocess.CompletedProcess[str]) -> tuple[list[str], dict[str, str]]:
    assert done.returncode == 0, done.stderr
    words, environ = json.loads(done.stdout)
    return words, environ


# The command line


def test_the_emit_option_is_removed_from_the_arguments():
    assert without_emit(["-a", "m", "--emit", "slurm", "x"]) == ["-a", "m", "x"]
    assert without_emit(["--emit=slurm", "-a", "m"]) == ["-a", "m"]


@pytest.mark.parametrize("kind", EMIT_KINDS)
def test_emit_prints_and_runs_nothing(kind, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([*NAMES, "DGXA100", "--emit", kind]) == 0
    out, err = capfd.readouterr()
    assert "--platform DGXA100" in " ".join(out.replace("- ", "").split())
    assert not err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--emit", "slrum"], "did you mean 'slurm'"),
        (["--emit", "slurm", "--explain"], "leave one out"),
        (["--emit", "slurm", "--open"], "--open shows the report of a run"),
        (["--emit", "slurm", "--json"], "--json goes with"),
    ],
)
def test_invalid_arguments_of_emit(argv, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse([*NAMES, "DGXA100", *argv])


def test_list_and_emit_together_are_an_error():
    with pytest.raises(ConfigError, match="--list goes with"):
        parse(["--list", "--emit", "slurm"])


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--resume", "runs/a"], "--resume runs/a would begin there again"),
        (["."], "would hide the program"),
        (["/a:b"], "/a:b cannot be mounted"),
        (["--workspace", "a,b"], "a,b cannot be mounted"),
        (["--workspace", "../up"], ""),
        (["--raport-file", "/tmp/r.json"], "--raport-file /tmp/r.json is not in the container"),
        (["--pretrained-from-file", "/w.safetensors"], "put the file below runs or /imagenet"),
        (["--pretrained-from-file", "/imagenet/w.safetensors"], ""),
        (["--pretrained-from-file", "runs/a/w.safetensors"], ""),
        (["--cfg_file", str(ROOT / "configs.yml")], "is not in the container"),
    ],
)
def test_paths_outside_the_container_are_an_error(kind, argv, words):
    if not words:
        assert emit(kind, *NAMES, "DGXA100", *argv)
        return
    with pytest.raises(ConfigError, match=re.escape(words)):
        emit(kind, *NAMES, "DGXA100", *argv)


def test_only_training_runs_resume():
    names = [*NAMES, "DGXA100", "--mode", "benchmark_training"]
    for kind in EMIT_KINDS:
        text = emit(kind, *names)
        assert "resume" not in text
        assert "max-restarts" not in text
    given = emit("torchrun", *NAMES, "DGXA100", "--resume", "runs/a")
    assert "max-restarts" not in given
    assert given.endswith("--resume runs/a")


def test_given_workspace_and_resume_are_not_added_again():
    text = emit("torchrun", *NAMES, "DGXA100", "--workspace", "w", "--resume", "auto")
    assert text.count("--workspace") == text.count("--resume") == 1
    text = emit("torchrun", *NAMES, "DGXA100", "--set", "run.workspace=w", "--", "/data")
    assert text.endswith("--set run.workspace=w --resume auto -- /data")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("slurm/resnet50.sbatch", "slurm"), ("kubernetes/resnet50.yaml", "kubernetes")],
)
def test_the_committed_examples_are_current(name, kind):
    text = emit(kind, *NAMES, "DGXA100")
    assert (ROOT / "scripts" / name).read_text() == f"{text}\n"


# torchrun


def test_torchrun_on_one_machine_passes_all_arguments():
    words = shlex.split(emit("torchrun", *NAMES, "DGXA100", *NASTY))
    at = words.index("launch.py")
    assert words[at + 1 :] == [*NAMES, "DGXA100", *NASTY, *OWN]
    assert {"--nnodes=1", "--nproc-per-node=8", "--standalone"} <= set(words[:at])


def test_torchrun_on_two_machines_takes_the_address_from_the_shell(tmp_path):
    text = emit("torchrun", *NAMES, "BI-V100x16")
    write_program(tmp_path, "show", SHOW)
    start = shlex.join(shlex.split(text.split(" --nnodes")[0]))
    assert text.startswith(start)
    text = text.replace(start, str(tmp_path / "show"), 1)
    there = with_programs(tmp_path, MASTER_ADDR="node1")
    there.pop("MASTER_PORT", None)
    words, _ = shown(shell(text, tmp_path, there))
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node1:29500"} <= set(words)
    words, _ = shown(shell(text, tmp_path, {**there, "MASTER_PORT": "29511"}))
    assert "--rdzv-endpoint=node1:29511" in words
    del there["MASTER_ADDR"]
    assert shell(text, tmp_path, there).returncode != 0


# Slurm


def directives(text: str) -> dict[str, str | None]:
    """The ``#SBATCH`` options, which end at the first command."""
    found: dict[str, str | None] = {}
    for line in text.splitlines()[1:]:
        if not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            option, equals, value = line.removeprefix("#SBATCH ").partition("=")
            found[option] = value if equals else None
    return found


def test_slurm_requests_the_nodes_of_the_platform():
    asked = directives(emit("slurm", *NAMES, "DGXA100", "--set", "platform.num_nodes=2"))
    assert asked["--nodes"] == "2"
    assert asked["--ntasks-per-node"] == asked["--gpus-per-node"] == "8"
    assert asked["--signal"] == "USR1@120"
    assert {"--requeue", "--exclusive"} <= set(asked)
    one = directives(emit("slurm", *NAMES, "A100", "-j", "5"))
    assert one["--ntasks-per-node"] == one["--gpus-per-node"] == "1"
    assert one["--cpus-per-task"] == "6"
    assert "--exclusive" not in one
    assert "--gpus-per-node" not in directives(emit("slurm", *NAMES, "CPU"))


def test_slurm_passes_all_arguments_and_mounts_the_folders(tmp_path):
    text = emit("slurm", *NAMES, "DGXA100", *NASTY)
    write_program(tmp_path / "bin", "srun", SHOW)
    words, _ = shown(shell(text, tmp_path, with_programs(tmp_path / "bin")))
    at = words.index("python")
    assert words[at:] == ["python", "launch.py", *NAMES, "DGXA100", *NASTY, *OWN]
    mounts = f"{tmp_path}/runs:/workspace/runs,/data/image net:/data/image net:ro"
    assert {
        f"--container-image={tmp_path}/image-classification.sqsh",
        f"--container-mounts={mounts}",
        "--container-workdir=/workspace",
        "--ntasks=8",
    } <= set(words[:at])
    assert (tmp_path / "runs").is_dir()


def test_slurm_puts_the_demo_data_into_the_shared_folder(tmp_path):
    write_program(tmp_path / "bin", "srun", SHOW)
    text = emit("slurm", *NAMES, "CPU", "--workspace", f"{tmp_path}/w")
    words, environ = shown(shell(text, tmp_path, with_programs(tmp_path / "bin")))
    assert f"--container-mounts={tmp_path}/w:{tmp_path}/w" in words
    assert environ["IMAGE_CLASSIFICATION_CACHE"] == f"{tmp_path}/w/cache"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (3, False), (75, True)])
def test_slurm_requeues_only_jobs_stopped_by_a_signal(code, requeued, tmp_path):
    bin_ = tmp_path / "bin"
    write_program(bin_, "srun", f"raise SystemExit({code})")
    write_program(bin_, "scontrol", "import sys; print('scontrol', *sys.argv[1:])")
    text = emit("slurm", *NAMES, "DGXA100")
    done = shell(text, tmp_path, with_programs(bin_, SLURM_JOB_ID="17"))
    assert done.returncode == code
    assert done.stdout == ("scontrol requeue 17\n" if requeued else "")
    assert not done.stderr


def test_slurm_reports_that_a_site_does_not_allow_requeuing(tmp_path):
    write_program(tmp_path / "bin", "srun", "raise SystemExit(75)")
    write_program(tmp_path / "bin", "scontrol", "raise SystemExit(1)")
    environ = with_programs(tmp_path / "bin", SLURM_JOB_ID="17")
    done = shell(emit("slurm", *NAMES, "DGXA100"), tmp_path, environ)
    assert done.returncode == 75
    assert done.stderr == "error: not requeued; submit this file again to continue\n"


# As srun: starts one process per task with Slurm's variables, returns the highest exit code. As
# Slurm before the time limit: signals every task of the first start once the run has begun. The
# tasks are forked, so that torch is imported once; FAULTS=full starts new processes.
SRUN = """
import os, pathlib, signal, subprocess, sys, time
from tests.support import fork_server

if os.environ.get("FAULTS") == "full":
    start = subprocess.Popen
else:
    fork_server.import_everything()
    start = fork_server.ForkedRank
os.chdir(os.environ["CONTAINER_WORKDIR"])
options = dict(w.split("=", 1) for w in sys.argv[1:sys.argv.index("python")])
command = [sys.executable, "-u", *sys.argv[sys.argv.index("python") + 1 :]]
tasks, nodes = int(options["--ntasks"]), int(options["--nodes"])
for mount in options["--container-mounts"].split(","):
    assert pathlib.Path(mount.split(":")[0]).is_dir(), mount
running = []
for rank in range(tasks):
    slurm = {
        "SLURM_STEP_NUM_TASKS": tasks, "SLURM_NTASKS": tasks, "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_PROCID": rank, "SLURM_LOCALID": rank % (tasks // nodes), "SLURM_STEP_ID": 0,
        "SLURM_STEP_NODELIST": "localhost",
    }
    environ = {**os.environ, **{key: str(value) for key, value in slurm.items()}}
    running.append(start(command, env=environ))
workspace = pathlib.Path(command[command.index("--workspace") + 1])
signaled = pathlib.Path(os.environ["SIGNALED"])
while any(p.poll() is None for p in running):
    time.sleep(0.02)
    metrics = workspace / "metrics.jsonl"
    if not signaled.exists() and metrics.exists() and metrics.stat().st_size:
        signaled.touch()
        for process in running:
            process.send_signal(signal.SIGUSR1)
raise SystemExit(max(p.returncode if p.returncode >= 0 else 128 - p.returncode for p in running))
"""


@pytest.mark.slow
def test_a_slurm_job_is_stopped_requeued_and_continued(small_arguments, tmp_path):
    """Two nodes of one task each, all on this machine; no container."""
    bin_, workspace = tmp_path / "bin", tmp_path / "run"
    write_program(bin_, "srun", SRUN)
    write_program(bin_, "scontrol", "import sys; print('scontrol', *sys.argv[1:])")
    # Forks have narrow networks, whose steps take about 30 ms.
    epochs = 3 if os.environ.get("FAULTS") == "full" else 6
    settings = ["--set=platform.num_nodes=2", "--set=batch.per_device=4"]
    settings.append(f"--set=schedule.epochs={epochs}")
    text = emit("slurm", *small_arguments, *settings, "--workspace", str(workspace))
    job = str(os.getpid())
    signaled = str(tmp_path / "signaled")
    environ = with_programs(
        bin_, SLURM_JOB_ID=job, SIGNALED=signaled, CONTAINER_WORKDIR=str(ROOT), PYTHONPATH=str(ROOT)
    )
    environ["STEM_CHANNELS"] = str(STEM_CHANNELS)
    first = shell(text, tmp_path, environ)
    assert first.returncode == 75, first.stderr
    assert f"scontrol requeue {job}" in first.stdout

    second = shell(text, tmp_path, environ)
    assert second.returncode == 0, second.stderr
    assert "scontrol" not in second.stdout
    records = read_metrics(workspace / "metrics.jsonl")
    steps = [r.step for r in records if r.kind == "step"]
    assert steps == list(range(1, 4 * epochs + 1))
    report = json.loads((workspace / "report.json").read_text())
    assert report["config"]["platform"]["num_nodes"] == 2
    assert report["results"]["validation"]["images"] == 15


# Kubernetes


def expanded(text: str, environ: dict[str, str]) -> str:
    """What the kubelet makes of an argument: ``$$`` is ``$``, a known ``$(NAME)`` its value."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return environ.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", value, text)


def trainer(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["spec"]["trainer"]
    return found


def test_kubernetes_passes_all_arguments():
    args = trainer(emit("kubernetes", *NAMES, "DGXA100", *NASTY))["args"]
    words = [expanded(arg, {"HOME": "/root"}) for arg in args]
    assert words == ["python", "launch.py", *NAMES, "DGXA100", *NASTY, *OWN]


def test_kubernetes_passes_the_node_rank_to_each_pod(tmp_path):
    asked = trainer(emit("kubernetes", *NAMES, "BI-V100x16", *NASTY))
    assert (asked["numNodes"], asked["numProcPerNode"]) == (2, 8)
    pod = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_PORT": "29500"}
    pod["PET_MASTER_ADDR"] = "run-node-0-0.run"
    write_program(tmp_path, "python", SHOW)
    command = shlex.join(expanded(arg, pod) for arg in asked["args"])
    words, environ = shown(shell(command, tmp_path, with_programs(tmp_path)))
    assert words[: len(NAMES) + 5] == ["launch.py", *NAMES, "BI-V100x16", *NASTY]
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        assert environ[name] == pod[f"PET_{name}"]


@pytest.mark.parametrize(
    ("platform", "resources"),
    [
        ("DGXA100", {"limits": {"nvidia.com/gpu": "8"}}),
        ("BI-V100x4", {"limits": {"iluvatar.com/gpu": "4"}}),
        ("CPU", {"requests": {"cpu": "2"}}),
    ],
)
def test_kubernetes_requests_the_devices_of_the_platform(platform, resources):
    assert trainer(emit("kubernetes", *NAMES, platform))["resourcesPerNode"] == resources


def test_a_long_job_name_is_shortened():
    names = ["--model", "resnext101-32x4d", "--precision", "AMP", "--platform", "DGX1V-16G"]
    found = {
        yaml.safe_load(emit("kubernetes", *names, "--mode", mode))["metadata"]["name"]
        for mode in ("benchmark_training", "benchmark_training_short")
    }
    assert len(found) == 2
    for name in found:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name)
