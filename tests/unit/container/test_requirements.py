"""The pinned files that the image is installed from have what the package requires."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "docker" / "requirements"
# Packages that come with the torch of a base image.
BASES_OWN = {"torch", "torchvision", "numpy"}


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(name: str) -> dict[str, str]:
    """package -> version of a pinned file."""
    entries = load("docker/install_requirements.py").pinned(REQUIREMENTS / f"{name}.txt")
    versions = {}
    for package, entry in entries.items():
        match = re.match(r"[\w.-]+==(\S+)(?: |$)", entry)
        assert match is not None, entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"{package} has no hash"
        versions[package] = match[1]
    return versions


def project() -> dict[str, list[Requirement]]:
    """Return the dependencies of the package by extra; "" for those without one."""
    # Python 3.10 has no TOML reader; these tables are lists of strings.
    text = (ROOT / "pyproject.toml").read_text()
    tables = re.findall(r"^(\w+) = (\[\n(?:.*\n)*?\])", text, flags=re.MULTILINE)
    tables += re.findall(r"^(\w+) = (\[\".*\"\])$", text, flags=re.MULTILINE)
    lists = {name: yaml.safe_load(body) for name, body in tables if name != "classifiers"}
    wanted = {"dependencies": "", "dali": "dali", "tensorboard": "tensorboard"}
    return {key: [Requirement(t) for t in lists[name]] for name, key in wanted.items()}


def test_a_plain_base_gets_everything_the_package_needs() -> None:
    versions = pinned("plain")
    for requirement in [r for group in project().values() for r in group]:
        assert requirement.specifier.contains(versions[requirement.name]), requirement
    assert "nvidia-npp-cu12" in versions
    tested = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert {name: versions[name] for name in tested} == tested


def test_a_base_with_torch_gets_none_of_its_own_packages_replaced() -> None:
    versions = pinned("framework")
    needed = {r.name for r in [*project()[""], *project()["tensorboard"]]}
    assert needed - BASES_OWN <= set(versions)
    assert not [n for n in versions if n in BASES_OWN or n.startswith(("nvidia-dali", "triton"))]
    stated = (REQUIREMENTS / "framework.in").read_text().splitlines()
    asked = {str(Requirement(line)) for line in stated if line and not line.startswith("#")}
    wanted = [*project()[""], *project()["tensorboard"]]
    assert asked == {str(r) for r in wanted if r.name not in BASES_OWN}


def test_the_recorded_defaults_follow_the_pins() -> None:
    text = (ROOT / "Dockerfile").read_text()
    match = re.search(r"PYTORCH_VERSION=\$\{PYTORCH_VERSION:-([\d.]+)\}", text)
    assert match is not None and match[1] == pinned("plain")["torch"]


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("pyyaml>=99", "pyyaml is .*; this program needs pyyaml>=99"),
        ("no-such-package>=1", "no-such-package is not installed"),
    ],
)
def test_unmet_requirements_are_named(requirement: str, words: str) -> None:
    (line,) = load("docker/check_requirements.py").unmet([requirement])
    assert re.search(words, line)


def test_installed_packages_meet_the_requirements() -> None:
    checker = load("docker/check_requirements.py")
    assert list(checker.unmet([str(r) for r in project()[""]])) == []
    # Not required on this platform.
    assert list(checker.unmet(["no-such-package; sys_platform == 'plan9'"])) == []


def test_python_310_reads_the_project_with_pips_own_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    load("docker/check_requirements.py").main(ROOT / "pyproject.toml")


@pytest.mark.parametrize("commit", ["main", "abc123", "0" * 39])
def test_apex_is_built_from_a_whole_commit_only(commit: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "docker" / "install_apex.sh"), commit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: APEX_COMMIT={commit} ") and "40 digits" in done.stderr


def test_sizes_of_an_image_and_its_layers_are_recorded(tmp_path: Path) -> None:
    inspected = {
        "Size": 9_000_000_000,
        "Config": {"Labels": {"org.opencontainers.image.base.name": "python:3.11-slim-bookworm"}},
    }
    history = [
        {"Size": "0B", "CreatedBy": '/bin/sh -c #(nop)  CMD ["--help"]'},
        {"Size": "8.78GB", "CreatedBy": "|1 A= /bin/sh -c python  install.py"},
        {"Size": "73.9MB", "CreatedBy": ""},
    ]
    (tmp_path / "inspect.json").write_text(json.dumps([inspected]))
    (tmp_path / "history").write_text("\n".join(json.dumps(line) for line in history))
    script = ROOT / "scripts" / "docker" / "image_record.py"
    files = [str(tmp_path / name) for name in ("inspect.json", "history", "out.json")]
    subprocess.run([sys.executable, str(script), "200", *files], check=True, capture_output=True)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["layers"] == [
        {"size_bytes": 73_900_000, "made_by": "the base image"},
        {"size_bytes": 8_780_000_000, "made_by": "python install.py"},
    ]
    assert (written["build_s"], written["revision"]) == (200, None)
