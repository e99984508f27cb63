"""The built distributions hold the whole program, and the installed command runs from anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = "--model resnet50 --precision AMP --mode convergence --platform DGXA100".split()  # noqa: SIM905
TOP_LEVEL = ("configs.yml", "launch.py", "LICENSE", "MANIFEST.in", "pyproject.toml", "README.md")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the sdist, and the wheel from the sdist, both from a copy of this tree."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "image_classification", folder / "image_classification", ignore=ignore)
    for name in (*TOP_LEVEL, "CHANGELOG.md", "setup.py"):
        shutil.copy(ROOT / name, folder)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel alone into an empty folder; return a function that runs the command."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environ = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def run(*words: str, code: int = 0, **variables: str) -> str:
        done = subprocess.run(
            [target / "bin" / "image-classification", *words],
            cwd=elsewhere,
            env={**environ, **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_the_install_name_is_not_that_of_another_project(wheel):
    # `image-classification` belongs to another project on the public index.
    assert wheel.name.startswith("imagenet_by_name-")


def test_the_wheel_holds_every_file_of_the_package_and_configs_yml(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "image_classification"
    files = {f.relative_to(ROOT).as_posix() for f in package.rglob("*") if f.is_file()}
    assert {f for f in files if "__pycache__" not in f} <= held
    content = zipfile.ZipFile(wheel).read("image_classification/configs.yml")
    assert content == (ROOT / "configs.yml").read_bytes()


def test_the_installed_command_explains_the_same_configuration_as_launch_py(installed):
    launch = [sys.executable, str(ROOT / "launch.py"), *NAMES, "--explain", "--json"]
    expected = subprocess.run(launch, check=True, capture_output=True, text=True).stdout
    assert json.loads(installed("launch", *NAMES, "--explain", "--json")) == json.loads(expected)


def test_usage_and_errors_name_the_command_as_it_was_typed(installed):
    assert installed("launch", "--help").startswith("usage: image-classification launch --model")
    for verb in ("dataset", "doctor", "report"):
        assert installed(verb, "--help").startswith(f"usage: image-classification {verb}")
    error = installed("dataset", "check", code=2)
    assert error == (
        "error: the following arguments are required: DIR: "
        "see image-classification dataset check --help\n"
    )


def test_the_installed_command_trains_on_two_processes_and_reports(installed, tmp_path):
    run = str(tmp_path / "run")
    names = ("--model=resnet18", "--precision=FP32", "--mode=convergence", "--platform=CPU")
    small = ("batch.per_device=2", "batch.global=4", "data.workers=0", "run.max_steps=2")
    settings = [f"--set={setting}" for setting in (*small, "platform.num_devices=2")]
    options = ("--image-size=32", "--training-only", f"--workspace={run}", *settings)
    installed("launch", *names, "synthetic", *options)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exit"]["code"] == 0
    assert json.loads(installed("report", "compare", run, run, "--json"))


def test_the_emitted_torchrun_command_starts_the_installed_module(installed):
    line = installed("launch", *NAMES, "--emit", "torchrun")
    assert " -m image_classification launch --model resnet50" in line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("image-classification la", {"launch"}),
        ("image-classification launch --model resnext101-3", {"resnext101-32x4d"}),
        ("image-classification launch --model resnet50 --platform DGXA", {"DGXA100"}),
        ("image-classification launch --lr-sch", {"--lr-schedule"}),
        ("image-classification launch --lr-schedule cos", {"cosine"}),
        ("image-classification launch --set optim.l", {"optim.lr="}),
        ("image-classification dataset pr", {"prepare"}),
        ("image-classification report com", {"combine", "compare"}),
        ("image-classification report compare --js", {"--json"}),
        ("image-classification doctor --platform DGXA", {"DGXA100"}),
    ],
)
def test_the_shell_completes_verbs_options_and_names(installed, line, expected, tmp_path):
    answer = tmp_path / "answer"
    installed(
        **{
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
    )
    assert {word.strip() for word in answer.read_text().split("\v")} == expected
