"""Build the Dockerfile again: after a code change, and on a base that brings torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import ROOT, Engine

# Like NVIDIA's entrypoint: prints to stdout, then executes the command.
NVIDIA_ENTRYPOINT = """#!/bin/bash
echo "== framework banner =="
exec "$@"
"""

# Stands for NVIDIA's PyTorch images, which need a registry: torch and most packages installed, some
# missing, pip constraints, an externally managed Python, an entrypoint and environment variables.
FRAMEWORK = """FROM {image}
USER root
WORKDIR /
RUN python -m pip uninstall --quiet --yes --root-user-action=ignore rich safetensors nvidia-ml-py \\
    && rm -rf /workspace /opt/image-classification \\
    && python -m pip list --format=freeze > /etc/pip-constraint.txt \\
    && stdlib="$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \\
    && touch "$stdlib/EXTERNALLY-MANAGED"
COPY nvidia_entrypoint.sh /opt/nvidia/nvidia_entrypoint.sh
ENV PIP_CONSTRAINT=/etc/pip-constraint.txt PYTORCH_VERSION=2.10.0a0+framework
WORKDIR /workspace
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
"""


@pytest.fixture
def name(engine: Engine) -> Iterator[str]:
    """A name for an image that is removed at the end."""
    name = f"ic-test-{uuid.uuid4().hex[:12]}"
    yield name
    engine.call("image", "rm", "--force", name)


def build(client: str, folder: Path, *options: str, **variables: str) -> str:
    """Build ``folder``'s Dockerfile; return the build's output."""
    network = os.environ.get("BUILD_NETWORK", "default")
    done = subprocess.run(
        [client, "build", f"--network={network}", *options, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def layers(engine: Engine, image: str) -> list[str]:
    return json.loads(
        engine.checked("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)
    )


def context(folder: Path) -> Path:
    """Copy the build context of the image."""
    for entry in ("image_classification", "docker", "docs", "scripts"):
        shutil.copytree(ROOT / entry, folder / entry, ignore=shutil.ignore_patterns("__pycache__"))
    for entry in ("Dockerfile", ".dockerignore", "launch.py", "configs.yml", "pyproject.toml"):
        shutil.copy2(ROOT / entry, folder / entry)
    for entry in ("README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy2(ROOT / entry, folder / entry)
    return folder


def buildkit_client() -> str | None:
    """Return a client that builds with BuildKit; None if there is none."""
    for client in ("docker", "/usr/bin/docker"):
        probe = subprocess.run(
            [client, "build", "--quiet", "-"],
            input="FROM scratch\nLABEL probe=1\n",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
        )
        if probe.returncode == 0:
            return client
    return None


def test_code_change_keeps_package_layers(engine: Engine, tmp_path: Path, name: str) -> None:
    folder = context(tmp_path)
    (folder / "launch.py").write_text((ROOT / "launch.py").read_text() + "\n# changed\n")
    labels = engine.inspect()["Config"]["Labels"]
    base = labels["org.opencontainers.image.base.name"]
    build(engine.client, folder, "--build-arg", f"FROM_IMAGE_NAME={base}", "--tag", name)
    before, after = layers(engine, engine.image), layers(engine, name)
    # Only the last two layers, which hold the program, are new.
    assert len(before) == len(after)
    assert before[:-2] == after[:-2]
    assert before[-2] != after[-2]


@pytest.mark.parametrize("builder", ["buildkit", "legacy"])
def test_base_with_torch_keeps_its_packages(
    engine: Engine, tmp_path: Path, name: str, builder: str
) -> None:
    client, variables = engine.client, {"DOCKER_BUILDKIT": "0"}
    with_buildkit = buildkit_client()
    if builder == "buildkit":
        variables = {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
        if with_buildkit is None:
            pytest.skip("no client builds with BuildKit here")
        client = with_buildkit
    elif with_buildkit is not None and os.environ.get("IMAGE_TESTS") != "full":
        pytest.skip("tested with BuildKit; IMAGE_TESTS=full tests both")
    base, folder = f"{name}-base", tmp_path / "base"
    folder.mkdir()
    (folder / "Dockerfile").write_text(FRAMEWORK.format(image=engine.image))
    entrypoint = folder / "nvidia_entrypoint.sh"
    entrypoint.write_text(NVIDIA_ENTRYPOINT)
    entrypoint.chmod(0o755)
    build(client, folder, "--tag", base, **variables)
    try:
        (tmp_path / "ours").mkdir()
        ours = context(tmp_path / "ours")
        # BuildKit keeps its cache when the image is removed; a cached step prints nothing.
        options = ["--no-cache", "--build-arg", f"FROM_IMAGE_NAME={base}", "--tag", name]
        output = build(client, ours, *options, **variables)
        assert "installing 3 packages" in output
        built = Engine(name, engine.client)
        code = "import torch, rich, safetensors, pynvml; print(torch.__version__)"
        same = engine.run("python", "-c", "import torch; print(torch.__version__)").stdout
        done = built.run("python", "-c", code)
        assert done.stdout == same, done.stderr
        # The framework's banner comes first, on stderr; the base's variables are kept.
        first, second, *_ = done.stderr.splitlines()
        assert first == "== framework banner ==" and second.startswith("image-class")
        shown = built.run("bash", "-c", "echo $PYTORCH_VERSION; ls /proc/$$/fd; id -u").stdout
        version, *descriptors, user = shown.split()
        assert (version, user) == ("2.10.0a0+framework", "1000")
        assert "3" not in descriptors
        listed = built.run("--list", "models", "--json")
        assert "resnet50" in json.loads(listed.stdout)["models"]
    finally:
        engine.call("image", "rm", "--force", name, base)


def test_apex_needs_a_cuda_compiler(engine: Engine) -> None:
    done = engine.run("bash", "docker/install_apex.sh", "0" * 40)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: APEX_COMMIT needs a base image with nvcc"
    )
