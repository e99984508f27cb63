"""Parts the tests of engine and command line share: small real images, small configurations."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from image_classification.config.schema import RunConfig
    from tests.support.jobs import Jobs


def pytest_configure() -> None:
    # A job in a shell's background ignores Ctrl-C, and so would every program the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, so that parallel workers end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


CLASSES = ("cat", "dog", "owl")


def write_images(folder: Path, per_class: int, seed: int) -> None:
    """Write ``folder/<class>/<n>.JPEG``: noise around a color that identifies the class."""
    random = np.random.default_rng(seed)
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for n in range(per_class):
            height, width = random.integers(36, 56, size=2)
            pixels = random.normal(96, 40, size=(height, width, 3))
            pixels[..., k] += 60
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{n:03d}.JPEG", quality=90)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 36 train and 15 validation JPEGs in 3 classes; read only."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", per_class=12, seed=1)
    write_images(root / "val", per_class=5, seed=2)
    return root


@pytest.fixture
def own_image_folder(tmp_path: Path) -> Path:
    """The same, for tests that damage it."""
    root = tmp_path / "images"
    write_images(root / "train", per_class=12, seed=1)
    write_images(root / "val", per_class=5, seed=2)
    return root


@pytest.fixture
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Start jobs of narrow networks; those that a failed test left are killed at its end."""
    from tests.support.jobs import Jobs

    folder = tmp_path_factory.mktemp("jobs")
    jobs = Jobs(folder, launcher=True, stem_channels=STEM_CHANNELS)
    yield jobs
    jobs.close()


# A quarter of the networks' width: a sixteenth of the arithmetic and of a checkpoint's size.
STEM_CHANNELS = 16


@pytest.fixture
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build every network with `STEM_CHANNELS` channels after its first convolution, not 64."""
    from image_classification.models import resnet

    monkeypatch.setattr(resnet, "STEM_CHANNELS", STEM_CHANNELS)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures for reports: they take as long as the training of a test."""
    from image_classification.launch import recorder

    monkeypatch.setattr(recorder, "draw_run", lambda *arguments: None)


SMALL: dict[str, Any] = {
    "model.num_classes": 3,
    "data.image_size": 32,
    "data.resize": 32,
    "data.workers": 0,
    "batch.per_device": 8,
    "batch.global": 8,
    "schedule.epochs": 3,
    "schedule.warmup_epochs": 1.0,
    "optim.lr": 0.02,
    "run.log_every_steps": 1,
    "run.benchmark_warmup_steps": 1,
}


@pytest.fixture
def small_config(
    image_folder: Path, tmp_path: Path, narrow_networks: None
) -> Callable[..., RunConfig]:
    """Resolve a narrow resnet18 on the small images: 4 steps per epoch, 3 epochs."""
    from image_classification.config.resolve import resolve

    def make(mode: str = "convergence", precision: str = "FP32", **sections: Any) -> RunConfig:
        overrides = {**SMALL, "run.workspace": str(tmp_path / "run")}
        overrides |= {name.replace("__", "."): value for name, value in sections.items()}
        names = ("resnet18", precision, mode, "CPU", "8e")
        return resolve(*names, data=str(image_folder), overrides=overrides)

    return make


@pytest.fixture
def open_run() -> Iterator[Callable[..., Any]]:
    """Build a run in this process; closed at the end of the test."""
    from image_classification.core.types import WorldInfo
    from image_classification.devices.accelerator import get_accelerator
    from image_classification.engine.runs import Run
    from image_classification.launch.run import MODES

    with ExitStack() as stack:

        def make(config: RunConfig, **control: Any) -> Any:
            config = replace(config, run=replace(config.run, **control))
            accelerator = get_accelerator("cpu")
            assert config.run.workspace is not None
            workspace = Path(config.run.workspace)
            workspace.mkdir(parents=True, exist_ok=True)
            base = Run(config, WorldInfo(), accelerator, accelerator.device(0), workspace)
            stack.callback(base.close)
            return MODES[config.run.mode].build(base)

        yield make


@pytest.fixture
def small_arguments(image_folder: Path, narrow_networks: None) -> list[str]:
    """The command line of the small configuration, in FP32.

    The network is narrow in this process and in forks of `jobs`, not in new processes.
    """
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    names = ["--model=resnet18", "--precision=FP32", "--mode=convergence", "--platform=CPU"]
    return [*names, str(image_folder), "--recipe=8e", *settings]
