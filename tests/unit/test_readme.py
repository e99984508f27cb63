"""What the documents tell a newcomer to type or open exists, and every command line resolves."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from image_classification import models
from image_classification.__main__ import VERBS
from image_classification.cli import (
    doctor,
    report,
    report_combine,
    report_compare,
    report_history,
    report_plots,
)
from image_classification.cli.dataset import build_parser
from image_classification.cli.listing import render_explanation
from image_classification.cli.parse import build_parser as launch_parser
from image_classification.cli.parse import parse
from image_classification.config.checks import KEYS
from image_classification.core.errors import ConfigError
from image_classification.models.weights import model_metadata, save_model

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docker" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
GPU_CHECK = ROOT / "scripts" / "gpu_check.sh"

# Of torchrun, srun, sbatch, enroot, docker, scripts/cards.sh, gpu_check.sh and container_check.sh.
FOREIGN_OPTIONS = {"--nproc-per-node", "--nodes", "--ntasks-per-node", "--signal", "--print"}
FOREIGN_OPTIONS |= {"--requeue", "--output", "--data-path", "--gpus", "--ipc", "--ulimit"}
FOREIGN_OPTIONS |= {"--logdir", "--backend-store-uri"}
FOREIGN_OPTIONS |= {"--rm", "--user", "--file", "--read-only", "--tmpfs", "--cap-drop"}
FOREIGN_OPTIONS |= {"--security-opt"}
FOREIGN_OPTIONS |= {"--results", "--repeat", "--quick"}
# Named in the documents, but files of a run's folder or of the predecessor.
FOREIGN_FILES = {"config.yml", "main.py"}
# Folders of a run, and the curves of a tracker.
FOREIGN_PLACES = (".venv/", "checkpoint/", "epoch/", "runs/", "telemetry/", "trackers/", "train/")
FOREIGN_PLACES += ("validation/", "validation_ema/")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    """Every line of the ``sh`` blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def launch_arguments(line: str) -> list[str] | None:
    """What follows ``launch.py`` on a shell line, up to | or >; None where it does not occur."""
    words = shlex.split(line, comments=True)
    at = [i for i, word in enumerate(words) if Path(word).name == "launch.py"]
    if not at:
        return None
    arguments = words[at[0] + 1 :]
    end = next((i for i, word in enumerate(arguments) if word in ("|", ">")), len(arguments))
    return arguments[:end]


def launches(path: Path) -> list[str]:
    text = text_of(path)
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if "launch.py --" in code]
    return [line for line in [*shell_lines(text), *inline] if launch_arguments(line)]


COMMANDS = [(path.name, line) for path in DOCUMENTS for line in launches(path)]


def gpu_check_lines(platform: str) -> list[str]:
    done = subprocess.run(
        ["bash", str(GPU_CHECK), "--print", platform],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if " launch.py " in line]


def resolves(arguments: list[str]) -> None:
    request = parse(arguments)
    if request.list_what is None:
        config = request.resolve()
        assert config.names.model == request.model


def test_the_readme_has_commands():
    assert sum(name == "README.md" for name, _ in COMMANDS) >= 8


@pytest.mark.parametrize("line", [line for _, line in COMMANDS])
def test_every_launch_command_resolves(line):
    arguments = launch_arguments(line)
    assert arguments
    resolves(arguments)


@pytest.mark.parametrize("platform", ["H200", "DGXA100", "DGX1V"])
def test_the_gpu_check_runs_commands_that_resolve(platform):
    lines = gpu_check_lines(platform)
    assert len(lines) >= 6
    for line in lines:
        arguments = launch_arguments(line)
        assert arguments
        resolves(arguments)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_exist(path):
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    code = "\n".join([*shell_lines(text_of(path)), *re.findall(r"`(make [^`]+)`", text_of(path))])
    named = set(re.findall(r"\bmake ([a-z-]+)", code))
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(path)):
        if not target.startswith(("https://", "http://")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_anchors_name_headings(path):
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text_of(path))) <= anchors


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_in_backticks_exist(path):
    for code in re.findall(r"`([^`\s]+)`", text_of(path)):
        is_path = re.fullmatch(r"[\w.-]+(/[\w.*-]+)+/?", code)
        is_file = re.fullmatch(r"[\w.-]+\.(py|yml|toml|md|sh)", code)
        if code.startswith(FOREIGN_PLACES) or code in FOREIGN_FILES:
            continue
        if is_path or is_file:
            assert (ROOT / code).exists(), code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_exist(path):
    commands = next(a for a in build_parser()._actions if isinstance(a.choices, dict)).choices
    parsers = [launch_parser(), doctor.build_parser(), *dict(commands or {}).values()]
    parsers += [
        module.build_parser()
        for module in (report_combine, report_compare, report_history, report_plots)
    ]
    known = {flag for p in parsers for action in p._actions for flag in action.option_strings}
    text = re.sub(r"\]\([^)]*\)", "", text_of(path))
    for option in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text):
        assert option in known | FOREIGN_OPTIONS, option


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_settings_exist(path):
    sections = {name.partition(".")[0] for name in KEYS}
    for code in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`]*)?`", text_of(path)):
        section, _, key = code.partition(".")
        if section in sections and key not in ("py", "yml", "json"):
            assert code in KEYS, code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_verbs_exist(path):
    for verb in re.findall(r"-m image_classification ([a-z-]+)", text_of(path)):
        assert verb in VERBS, verb
    for command in re.findall(r"-m image_classification report ([a-z-]+)", text_of(path)):
        assert command in report.COMMANDS, command


def test_the_explanation_shown_is_the_real_one():
    """Line numbers of configs.yml apart, which move with every edit there."""

    def normal(line: str) -> str:
        return " ".join(re.sub(r"configs\.yml:\d+", "configs.yml:N", line).split())

    text = text_of(ROOT / "README.md")
    command = next(line for line in shell_lines(text) if "--explain" in line)
    request = parse(launch_arguments(command) or [])
    real = {normal(line) for line in render_explanation(request.resolve()).splitlines()}
    shown = re.findall(r"^```text\n(--model.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(shown) == 1
    assert {normal(line) for line in shown[0].splitlines()} <= real


def test_the_error_shown_is_the_real_one():
    names = "--model resnet50 --precision AMP --mode convergence --platform DGX1V"
    with pytest.raises(ConfigError) as found:
        parse([*names.split(), "--batch-size", "192"]).resolve()
    assert f"\nerror: {found.value.message}\n" in text_of(ROOT / "README.md")


def test_the_python_shown_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "README.md"), re.M | re.DOTALL)
    assert len(blocks) == 1
    save_model(tmp_path / "model.safetensors", models.build("resnet18"), model_metadata("resnet18"))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "README.md", "exec"), scope)
    assert scope["config"].optim.lr == 2.048
    assert not scope["model"].training
