"""Contents of the image and their permissions."""

from __future__ import annotations

import re

from image_classification import __version__
from tests.image.containers import ROOT, Engine

WRITABLE = (
    "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' "
    "-not -path '/sys/*' 2>/dev/null; id -u"
)


def test_user_is_not_root_and_writes_only_runs_and_tmp(engine: Engine) -> None:
    for flags in ([], ["--user", "4321:8765"]):
        done = engine.run("bash", "-c", WRITABLE, flags=["--network", "none", *flags])
        *writable, user = done.stdout.splitlines()
        assert user == ("4321" if flags else "1000")
        inside = {p for p in writable if not p.startswith(("/tmp", "/var/tmp", "/run/lock"))}
        assert inside == {"/workspace/runs"}


def test_user_without_passwd_entry(engine: Engine) -> None:
    code = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    done = engine.run("python", "-c", code, options=["--user", "4321:8765"])
    assert done.stdout.split() == ["trainer", "/tmp"]


def test_labels(engine: Engine) -> None:
    config = engine.inspect()["Config"]
    labels = {
        key.removeprefix("org.opencontainers.image."): value
        for key, value in config["Labels"].items()
    }
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"] and labels["base.digest"].startswith("sha256:")
    assert re.match(r"[0-9a-f]{40}", labels["revision"])
    assert {"title", "description", "source"} <= set(labels)
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["IMAGE_CLASSIFICATION_REVISION"] == labels["revision"]
    assert environment["IMAGE_CLASSIFICATION_BASE"] == labels["base.name"]
    # enroot's PyTorch hook needs this variable.
    assert environment["PYTORCH_VERSION"].startswith("2.")


def test_no_development_files(engine: Engine) -> None:
    found = set(engine.run("bash", "-c", "ls -A /workspace").stdout.split())
    assert {"launch.py", "configs.yml", "image_classification", "docker", "runs"} <= found
    assert not found & {".git", ".venv", "tests", "benchmarks"}
    folders = "ls -A /root/.cache /var/lib/apt/lists /var/cache/apt 2>/dev/null"
    caches = engine.run("bash", "-c", folders, options=["--user", "0:0"]).stdout
    assert not re.search(r"\.(deb|bin)|pip|_Packages", caches)


def test_no_secret_in_the_layers(engine: Engine) -> None:
    history = engine.checked("history", "--no-trunc", "--format", "{{.CreatedBy}}", engine.image)
    environment = "\n".join(engine.inspect()["Config"]["Env"])
    for text in (history, environment):
        assert not re.search(r"(?i)token|password|secret|api_?key|://[^/\s]*@", text)


def test_packages_are_the_pinned_versions(engine: Engine) -> None:
    frozen = engine.run("python", "-m", "pip", "list", "--format=freeze").stdout
    installed = {}
    for line in frozen.splitlines():
        name, _, version = line.partition("==")
        installed[re.sub(r"[-_.]+", "-", name).lower()] = version
    text = (ROOT / "docker" / "requirements" / "plain.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))
    assert len(pinned) > 50
    assert {n: installed.get(n) for n in pinned} == pinned
    wrong = engine.run("python", "docker/check_requirements.py", "pyproject.toml")
    assert wrong.returncode == 0, wrong.stderr


def test_npp_libraries_load(engine: Engine) -> None:
    code = "import ctypes; [ctypes.CDLL(f'libnpp{part}.so.12') for part in ('c', 'ig', 'icc')]"
    done = engine.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
