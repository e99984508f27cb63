"""Dockerfile, bake file, compose file and the scripts' table of bases agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from image_classification import __version__
from image_classification.config.catalogue import load_catalogue

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BAKE = (ROOT / "docker" / "docker-bake.hcl").read_text()


def bases(expression: str) -> str:
    """Evaluate ``expression`` after sourcing scripts/docker/bases.sh."""
    done = subprocess.run(
        ["bash", "-c", f"source scripts/docker/bases.sh; {expression}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def test_every_platform_has_a_base() -> None:
    targets = {name: bases(f"target_of {name}") for name in load_catalogue().platforms}
    assert {"slim", "ngc", ""} == set(targets.values())
    for platform in ("CPU", "GPU", "DGX1V", "DGX2V"):
        assert targets[platform] == "slim", "later torch and NGC images do not support V100"
    assert {n for n, t in targets.items() if t == ""} == {
        n for n in targets if n.startswith(("BI-V100", "GAUDI"))
    }
    assert bases("target_of DGX1") == "unknown"


def test_bases_agree() -> None:
    slim, ngc = bases("base_of slim"), bases("base_of ngc")
    assert set(re.findall(r'FROM_IMAGE_NAME = "(.+?)"', BAKE)) == {slim, ngc}
    assert set(re.findall(r"ARG FROM_IMAGE_NAME=(.+)", DOCKERFILE)) == {slim}
    readme = (ROOT / "docs" / "container.md").read_text()
    assert slim in readme and ngc in readme


def test_versions_agree() -> None:
    assert f"ARG IMAGE_VERSION={__version__}" in DOCKERFILE
    assert re.search(rf'"IMAGE_VERSION" {{\n  default = "{re.escape(__version__)}"', BAKE)


def test_bake_file_uses_declared_arguments() -> None:
    given = set(re.findall(r"^    (\w+) +=|args +=? *{ (\w+) =", BAKE, flags=re.MULTILINE))
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE))
    assert {a or b for a, b in given} == declared


def test_dockerfile_needs_no_buildkit() -> None:
    assert "# syntax" not in DOCKERFILE
    assert not re.search(r"<<-?[\"']?\w+|--mount=|--chmod|--link", DOCKERFILE)


def test_dockerignore_keeps_needed_files() -> None:
    """Docker reads .dockerignore as a list of patterns, the last that matches decides."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    for needed in ("docker", "image_classification", "launch.py", "configs.yml", "pyproject.toml"):
        assert needed in kept and (ROOT / needed).exists()
    for entry in kept:
        assert (ROOT / entry).exists(), entry


def test_compose_file() -> None:
    content = yaml.safe_load((ROOT / "scripts" / "docker" / "compose.yml").read_text())
    first, second = content["services"]["node0"], content["services"]["node1"]
    for rank, node in enumerate((first, second)):
        assert node["environment"]["NODE_RANK"] == str(rank)
        assert node["environment"]["NNODES"] == "2"
        assert node["environment"]["MASTER_ADDR"] == first["hostname"]
        assert node["read_only"] and node["cap_drop"] == ["ALL"]
    assert first["command"] == second["command"]


def test_compose_gpu_file() -> None:
    nodes = [
        yaml.safe_load((ROOT / "scripts" / "docker" / name).read_text())["services"]
        for name in ("compose.yml", "compose.gpu.yml")
    ]
    assert nodes[0].keys() == nodes[1].keys()
    (devices,) = zip(
        *(n["deploy"]["resources"]["reservations"]["devices"] for n in nodes[1].values()),
        strict=True,
    )
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]
    for node in nodes[1].values():
        # Both must be given: the default in compose.yml is the demo on a CPU.
        assert "${COMMAND:?" in node["command"]
        assert [v.startswith("${DATA:?") and v.endswith(":ro") for v in node["volumes"]] == [True]


def test_kubernetes_user() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.MULTILINE)
    manifest = (ROOT / "scripts" / "kubernetes" / "resnet50.yaml").read_text()
    assert f"fsGroup: {user[1]}" in manifest and "runAsNonRoot: true" in manifest
