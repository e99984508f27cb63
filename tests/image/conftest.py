"""Fixtures of the image tests; `make test-image` builds the image, sets IMAGE and runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import Engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set one time limit, against hanging only: long enough for training on a busy machine."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine with the image under test; its containers are removed at the end."""
    image = os.environ.get("IMAGE")
    if not image:
        pytest.skip("no image: make test-image builds one and sets IMAGE")
    started = Engine(image, os.environ.get("DOCKER", "docker"))
    yield started
    started.remove_all()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder for /workspace/runs that the image's user can write."""
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="session")
def digits(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of the demo data set, written by the image: 20 steps of 32, 100 validation images."""
    folder = write_data_set(engine, tmp_path_factory.mktemp("data"), "demo", "/data/set")
    for split, kept in (("train", 64), ("val", 10)):
        for images in (folder / split).iterdir():
            for image in sorted(images.iterdir())[kept:]:
                image.unlink()
    return folder


@pytest.fixture(scope="session")
def photographs(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of ImageNet's sizes: 8 steps of 32, and 50 validation images."""
    words = "fake /data/set --images 256 --val-images 50 --classes 10"
    return write_data_set(engine, tmp_path_factory.mktemp("data"), *words.split())


def write_data_set(engine: Engine, folder: Path, *dataset: str) -> Path:
    folder.chmod(0o777)
    user = f"{os.getuid()}:{os.getgid()}"
    options = ["--volume", f"{folder}:/data", "--user", user]
    done = engine.run("dataset", *dataset, options=options)
    assert done.returncode == 0, done.stderr
    return folder / "set"
