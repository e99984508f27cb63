"""A built image and an engine to run it with; `make test-image` sets IMAGE and runs these."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine, with the image under test; every container it starts is gone at the end."""
    image = os.environ.get("IMAGE")
    if not image:
        pytest.skip("no image: make test-image builds one and sets IMAGE")
    started = Engine(image, os.environ.get("DOCKER", "docker"))
    yield started
    started.remove_all()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder for /workspace/runs that the image's own user may write."""
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="session")
def digits(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data set as class folders on the host, written by the image itself."""
    folder = tmp_path_factory.mktemp("data")
    folder.chmod(0o777)
    done = engine.run("dataset", "demo", "/data/digits", options=["--volume", f"{folder}:/data"])
    assert done.returncode == 0, done.stderr
    return folder / "digits"
