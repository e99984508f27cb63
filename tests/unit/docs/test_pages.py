"""Commands, options, settings, links and files in the documentation exist and work."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from image_classification.__main__ import VERBS
from image_classification.cli import report
from image_classification.cli.launch import parse
from image_classification.cli.listing import render_explanation
from image_classification.config.keys import KEYS, to_yaml
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
PAGES = (
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docker" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))

# Options of torchrun, srun, sbatch, enroot, docker, tensorboard and mlflow.
OTHER_OPTIONS = {"--nproc-per-node", "--nodes", "--ntasks-per-node", "--signal", "--requeue"}
OTHER_OPTIONS |= {"--output", "--gpus", "--ipc", "--ulimit", "--rm", "--user", "--file"}
OTHER_OPTIONS |= {"--read-only", "--tmpfs", "--cap-drop", "--security-opt"}
OTHER_OPTIONS |= {"--logdir", "--backend-store-uri"}
# A file of a run, one of the predecessor, and a unit.
NO_FILES = {"config.yml", "main.py", "images/s", "run/text_summary"}
# Folders of a run and of a checkout, subfolders named without their parent, names of curves.
NO_FOLDERS = (
    *(
        ".venv/",
        "site/",
        "runs/",
        "photos/",
        "plots/",
        "checkpoints/",
        "trackers/",
        "train/",
        "val/",
    ),
    *("formats/", "loaders/", "tools/", "published/", "compare/", "page/", "pictures/"),
    "requirements/",
    *("checkpoint/", "epoch/", "telemetry/", "validation/", "validation_ema/"),
)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    """Return every command of the ``sh`` blocks, with continuation lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def launch_arguments(line: str) -> list[str] | None:
    """Return what follows ``launch.py`` in a command, up to | or >; None without ``launch.py``."""
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


def check_resolves(line: str) -> None:
    request = parse(launch_arguments(line) or [])
    if request.list_what is None:
        assert request.read().on().names.model == request.model


def test_readme_is_at_most_200_lines():
    assert len(text_of(README).splitlines()) <= 200


@pytest.fixture
def run_of_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the present folder one with the run that the pages continue and evaluate."""
    config = resolve("resnet50", "AMP", "convergence", "CPU")
    (tmp_path / "runs" / "digits" / "checkpoints" / "step-0000000440").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "config.yml").write_text(to_yaml(config))
    monkeypatch.chdir(tmp_path)


@each_page
def test_launch_commands_resolve(path: Path, run_of_the_pages: None):
    for line in launches(path):
        check_resolves(line)


def test_launch_commands_are_found():
    assert len(launches(README)) >= 4
    assert len(launches(ROOT / "docs" / "published-runs.md")) >= 6


@pytest.mark.parametrize("platform", ["H200", "DGXA100", "DGX1V"])
def test_gpu_check_runs_commands_that_resolve(platform: str):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--print", platform],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if " launch.py " in line]
    assert len(lines) >= 6
    for line in lines:
        check_resolves(line)


@each_page
def test_make_targets_exist(path: Path):
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    code = "\n".join([*shell_lines(text_of(path)), *re.findall(r"`(make [^`]+)`", text_of(path))])
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets


@each_page
def test_links_and_anchors_exist(path: Path):
    """`make docs` checks those between pages of the site again, as mkdocs sees them."""
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", text_of(path)):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            text = text_of(target)
            if found := re.search(r'--8<-- "(.+)"', text):
                text = text_of(ROOT / found[1])
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, link


@each_page
def test_files_in_backticks_exist(path: Path):
    for code in re.findall(r"`([^`\s]+)`", text_of(path)):
        is_path = re.fullmatch(r"[\w.-]+(/[\w.*-]+)+/?", code)
        is_file = re.fullmatch(r"[\w.-]+\.(py|yml|toml|md|sh)", code)
        if code.startswith(NO_FOLDERS) or code in NO_FILES or not (is_path or is_file):
            continue
        places = (ROOT, path.parent, ROOT / "image_classification")
        assert any((place / code).exists() for place in places), code


def known_options() -> set[str]:
    """Return every option that the package and the scripts define."""
    sources = [*(ROOT / "image_classification").rglob("*.py"), ROOT / "scripts" / "gpu_check.sh"]
    sources += [ROOT / "scripts" / "cards.sh", ROOT / "scripts" / "container_check.sh"]
    found = set()
    for source in sources:
        found |= set(re.findall(r"""(?<![\w-])--[a-zA-Z][\w-]*""", text_of(source)))
    return found


@pytest.fixture(scope="module")
def options() -> set[str]:
    return known_options() | OTHER_OPTIONS


@each_page
def test_options_exist(path: Path, options: set[str]):
    text = re.sub(r"\]\([^)]*\)", "", text_of(path))
    assert set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)) <= options


@each_page
def test_settings_exist(path: Path):
    sections = {name.partition(".")[0] for name in KEYS}
    for code in re.findall(r"`([a-z_]+\.[a-z_.0-9]+)(?:=[^`]*)?`", text_of(path)):
        section, _, key = code.partition(".")
        is_python = path.name == "python.md" or "build" in key or "list_models" in key
        if section in sections and key not in ("py", "yml", "json") and not is_python:
            assert code in KEYS or code in ("config.resolve",), code


@each_page
def test_verbs_exist(path: Path):
    for verb in re.findall(r"-m image_classification ([a-z-]+)", text_of(path)):
        assert verb in VERBS, verb
    for command in re.findall(r"-m image_classification report ([a-z-]+)", text_of(path)):
        assert command in report.COMMANDS, command


def test_the_explanation_in_the_docs_is_current():
    """Apart from line numbers of configs.yml, which change with every edit there."""

    def normal(line: str) -> str:
        return " ".join(re.sub(r"configs\.yml:\d+", "configs.yml:N", line).split())

    text = text_of(README)
    command = next(line for line in shell_lines(text) if "--explain" in line)
    request = parse(launch_arguments(command) or [])
    real = {normal(line) for line in render_explanation(request.read().on()).splitlines()}
    shown = re.findall(r"^```text\n(--model.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(shown) == 1
    assert {normal(line) for line in shown[0].splitlines()} <= real


def test_the_error_in_the_docs_is_current():
    names = "--model resnet50 --precision AMP --mode convergence --platform DGX1V"
    with pytest.raises(ConfigError) as found:
        parse([*names.split(), "--batch-size", "192"]).read().on()
    page = text_of(ROOT / "docs" / "published-runs.md")
    assert f"\nerror: {found.value.message}\n" in page
