"""The same Dockerfile again: after a change of the code, and on a base that brings torch."""

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

# As NVIDIA's does: says something on stdout, then becomes the command.
NVIDIA_ENTRYPOINT = """#!/bin/bash
echo "== a framework's own banner =="
exec "$@"
"""

# NVIDIA's PyTorch images are out of reach of a test without a registry. What the build has to
# respect of them is put over the image under test: torch and most packages there, some missing,
# constraints for pip, a Python that is the system's, an entrypoint and variables of their own.
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
    """A name for an image that is gone at the end."""
    name = f"ic-test-{uuid.uuid4().hex[:12]}"
    yield name
    engine.call("image", "rm", "--force", name)


def build(client: str, folder: Path, *options: str, **variables: str) -> str:
    """Build ``folder``'s Dockerfile; return all that was said."""
    network = os.environ.get("BUILD_NETWORK", "default")
    done = subprocess.run(
        [client, "build", f"--network={network}", *options, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def layers(engine: Engine, image: str) -> list[str]:
    return json.loads(
        engine.checked("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)
    )


def context(folder: Path) -> Path:
    """A copy of what the image is built from."""
    for entry in ("image_classification", "docker", "docs", "scripts"):
        shutil.copytree(ROOT / entry, folder / entry, ignore=shutil.ignore_patterns("__pycache__"))
    for entry in ("Dockerfile", ".dockerignore", "launch.py", "configs.yml", "pyproject.toml"):
        shutil.copy2(ROOT / entry, folder / entry)
    for entry in ("README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy2(ROOT / entry, folder / entry)
    return folder


def buildkit_client() -> str | None:
    """A client whose engine builds with BuildKit, if there is one."""
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


def test_a_change_of_the_code_leaves_the_packages_alone(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    folder = context(tmp_path)
    (folder / "launch.py").write_text((ROOT / "launch.py").read_text() + "\n# changed\n")
    labels = engine.inspect()["Config"]["Labels"]
    base = labels["org.opencontainers.image.base.name"]
    build(engine.client, folder, "--build-arg", f"FROM_IMAGE_NAME={base}", "--tag", name)
    before, after = layers(engine, engine.image), layers(engine, name)
    # Only the program and what is made of it are new.
    assert len(before) == len(after)
    assert before[:-2] == after[:-2]
    assert before[-2] != after[-2]


@pytest.mark.parametrize("builder", ["legacy", "buildkit"])
def test_a_base_that_brings_torch_keeps_it(
    engine: Engine, tmp_path: Path, name: str, builder: str
) -> None:
    client, variables = engine.client, {"DOCKER_BUILDKIT": "0"}
    if builder == "buildkit":
        variables = {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
        found = buildkit_client()
        if found is None:
            pytest.skip("no client here builds with BuildKit")
        client = found
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
        # BuildKit keeps its cache when the image goes: a second run would install nothing.
        options = ["--no-cache", "--build-arg", f"FROM_IMAGE_NAME={base}", "--tag", name]
        said = build(client, ours, *options, **variables)
        assert "installing 3 packages" in said
        there = Engine(name, engine.client)
        code = "import torch, rich, safetensors, pynvml; print(torch.__version__)"
        same = engine.run("python", "-c", "import torch; print(torch.__version__)").stdout
        done = there.run("python", "-c", code)
        assert done.stdout == same, done.stderr
        # NVIDIA's banner came first, and on stderr; the revision of the base's torch is its own.
        first, second, *_ = done.stderr.splitlines()
        assert first == "== a framework's own banner ==" and second.startswith("image-class")
        shown = there.run("bash", "-c", "echo $PYTORCH_VERSION; ls /proc/$$/fd; id -u").stdout
        version, *descriptors, user = shown.split()
        assert (version, user) == ("2.10.0a0+framework", "1000")
        assert "3" not in descriptors
        listed = there.run("--list", "models", "--json")
        assert "resnet50" in json.loads(listed.stdout)["models"]
    finally:
        engine.call("image", "rm", "--force", name, base)


def test_apex_is_built_only_where_it_can_be(engine: Engine) -> None:
    done = engine.run("bash", "docker/install_apex.sh", "0" * 40)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: APEX_COMMIT needs a base image with nvcc"
    )
