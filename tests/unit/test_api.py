"""The package from Python: lazy names, loading, transforms, training and evaluating."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import v2

import image_classification as ic
from image_classification import api
from image_classification.config.resolve import read_run
from image_classification.core.errors import CheckpointError, ConfigError, DataError
from image_classification.core.types import WorldInfo
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine import step as step_module
from image_classification.engine.build import open_split
from image_classification.engine.runs import Run
from image_classification.engine.stop import STOP_SIGNALS
from image_classification.launch.run import start_run
from image_classification.models import Preprocessing, build
from image_classification.reporting.sinks import read_metrics
from tests.conftest import SMALL, write_images

Config = Callable[..., ic.RunConfig]


@pytest.fixture(autouse=True)
def _no_pictures(no_pictures: None) -> None:
    """Leave out the pictures of reports."""


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Send a signal to this process while a step is taken."""

    def at(step: int, number: signal.Signals) -> None:
        original = step_module.train_step

        def train_step(run: Any, batches: Any, number_of_step: int, *rest: Any) -> Any:
            if number_of_step + 1 == step:
                os.kill(os.getpid(), number)
            return original(run, batches, number_of_step, *rest)

        monkeypatch.setattr("image_classification.engine.train.train_step", train_step)

    return at


def weights_of(folder: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return ic.load_model(folder, checkpoint).state_dict()


def equal(mine: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(mine[key], others[key]) for key in mine)


# The package's names


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, image_classification as ic; ic.list_models('*resnext*'); ic.resolve; "
        "ic.UserError; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_exported_name_exists() -> None:
    exported = [name for names in ic._MODULES.values() for name in names]
    assert sorted(exported) == ic.__all__
    assert set(ic.__all__) <= set(dir(ic))
    for name in ic.__all__:
        assert getattr(ic, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = ic.fit  # type: ignore[attr-defined]


# Transforms


@pytest.fixture
def odd_images(tmp_path: Path) -> Path:
    """Class folders of images of several kinds, one of them lying on its side by EXIF."""
    root, random = tmp_path / "odd", np.random.default_rng(3)

    def pixels(height: int, width: int, channels: int) -> np.ndarray:
        coarse = random.integers(0, 256, (height // 8, width // 8, channels), dtype=np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1).squeeze()

    on_side = PIL.Image.Exif()
    on_side[0x0112] = 6
    for split in ("train", "val"):
        folder = root / split / "things"
        folder.mkdir(parents=True)
        PIL.Image.fromarray(pixels(80, 56, 3)).save(folder / "0.jpg", quality=90)
        PIL.Image.fromarray(pixels(40, 104, 3)).save(folder / "1.jpg", exif=on_side)
        PIL.Image.fromarray(pixels(48, 48, 1)).save(folder / "2.png")
        PIL.Image.fromarray(pixels(64, 72, 4), "RGBA").save(folder / "3.png")
    return root


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data.resize_mode": "squash", "data.interpolation": "bicubic"},
        {"data.antialias": False, "data.exif_orientation": False, "data.mean": [0.5, 0.4, 0.3]},
    ],
)
def test_transform_equals_the_loaders_images(odd_images: Path, settings: dict[str, Any]) -> None:
    config = ic.resolve(
        "resnet18",
        "FP32",
        "evaluate",
        "CPU",
        data=str(odd_images),
        overrides={"data.image_size": 32, "data.resize": 36, "data.workers": 0, **settings},
    )
    accelerator = get_accelerator("cpu")
    base = Run(config, WorldInfo(), accelerator, accelerator.device(0), Path())
    (batch,) = list(open_split(base, "val").epoch(0))
    base.close()
    transform = api.EvalTransform(Preprocessing.of(config.data))
    files = sorted((odd_images / "val" / "things").iterdir())
    assert len(files) == int(batch.valid.sum()) == 4
    for path, expected in zip(files, batch.images, strict=False):
        assert torch.equal(transform(path), expected), path
        with PIL.Image.open(path) as image:
            assert torch.equal(transform(image), expected), path
    tensors = torch.stack([v2.functional.pil_to_tensor(PIL.Image.open(files[0]))] * 2)
    assert torch.equal(transform(tensors)[1], batch.images[0])


def test_transform_leaves_labels_and_composes() -> None:
    transform = v2.Compose([api.EvalTransform(Preprocessing(image_size=16, resize=16))])
    image, label = transform(PIL.Image.new("L", (20, 30)), 7)
    assert (image.shape, image.dtype, label) == ((3, 16, 16), torch.float32, 7)


def test_transform_refuses_what_is_no_image(tmp_path: Path) -> None:
    transform = api.EvalTransform(Preprocessing())
    with pytest.raises(DataError, match=r"must be uint8 .* not torch.float32 \[3, 8, 8\]"):
        transform(torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match=r"cannot read .*absent.jpg"):
        transform(tmp_path / "absent.jpg")


# Training


def test_train_yields_what_the_command_line_records(small_config: Config, tmp_path: Path) -> None:
    config = small_config()
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    threads = set(threading.enumerate())
    torch.manual_seed(5)
    expected_random = torch.randn(3)
    torch.manual_seed(5)
    precision = torch.backends.mkldnn.conv.fp32_precision  # type: ignore[attr-defined]
    records = list(ic.train(config))
    assert torch.equal(torch.randn(3), expected_random)
    assert torch.backends.mkldnn.conv.fp32_precision == precision  # type: ignore[attr-defined]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert not torch.distributed.is_initialized()
    assert set(threading.enumerate()) <= threads

    kinds = [record.kind for record in records]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("validation") == 3
    assert records[0].values["workspace"] == str(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exit"]["status"] == "done"
    assert report["results"]["validation"] == records[-1].values["results"]["validation"]
    written = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [r.values["loss"] for r in written if r.kind == "step"]
    assert len(steps) == 12
    assert steps == [r.values["loss"] for r in records if r.kind == "step"]

    # The same run from the command line's function, after it in the same process.
    overrides = {**SMALL, "run.workspace": str(tmp_path / "again")}
    names = ("resnet18", "FP32", "convergence", "CPU", config.names.recipe)
    layered = read_run(*names, data=config.data.path, overrides=overrides)
    assert start_run(layered, [], []) == 0
    assert equal(weights_of(tmp_path / "run"), weights_of(tmp_path / "again"))


def test_interrupted_run_is_saved_and_continues_to_the_same_weights(
    small_config: Config, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    whole = tmp_path / "whole"
    for _ in ic.train(small_config(run__workspace=str(whole))):
        pass
    config = small_config(run__resume="auto")
    interrupted(6, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 6 is saved"):
        list(ic.train(config))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exit"]["status"] == "stopped"
    records = list(ic.train(config))
    assert records[0].values["start_step"] == 6
    assert equal(weights_of(tmp_path / "run"), weights_of(whole))


def test_sigterm_raises_stopped(small_config: Config, interrupted: Callable[..., None]) -> None:
    interrupted(2, signal.SIGTERM)
    with pytest.raises(ic.Stopped, match="SIGTERM received; step 2 is saved"):
        list(ic.train(small_config()))


def test_leaving_the_loop_saves_the_run(small_config: Config, tmp_path: Path) -> None:
    for record in ic.train(small_config()):
        if record.step == 2:
            break
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exit"]["status"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / "step-0000000002").is_dir()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_between_two_records_is_the_callers(small_config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        for record in ic.train(small_config()):
            if record.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
    del caught
    assert (tmp_path / "run" / "checkpoints" / "step-0000000002").is_dir()


def test_training_works_in_another_thread(small_config: Config) -> None:
    kinds: list[str] = []
    config = small_config(run__max_steps=2)
    thread = threading.Thread(target=lambda: kinds.extend(r.kind for r in ic.train(config)))
    thread.start()
    thread.join()
    assert kinds[-1] == "end"


def test_errors_are_the_packages_and_come_at_once(
    small_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="unknown mode of train 'evaluate'"):
        ic.train(small_config("evaluate"))
    with pytest.raises(ConfigError, match=r"uses one device and this run has 8: .*launch\.py"):
        ic.train(ic.resolve("resnet50", "AMP", "convergence", "DGX1V", data="demo"))
    with pytest.raises(ic.UserError, match="absent"):
        list(ic.train(small_config(data__path="/absent")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="uses one device"):
        ic.train(small_config())


def test_diverged_run_raises_with_what_is_kept(small_config: Config) -> None:
    with pytest.raises(ic.DivergedError, match="no checkpoint had been saved"):
        list(ic.train(small_config(optim__lr=1e30, schedule__warmup_epochs=0.0)))


# Loading and evaluating


@pytest.fixture
def trained(small_config: Config, tmp_path: Path) -> tuple[Path, list[ic.Record]]:
    """A run of three classes and its records."""
    return tmp_path / "run", list(ic.train(small_config()))


def test_evaluation_equals_the_runs_validation(
    trained: tuple[Path, list[ic.Record]], image_folder: Path
) -> None:
    folder, records = trained
    last = [r.values for r in records if r.kind == "validation"][-1]
    model = ic.load_model(folder, "last")
    assert not model.training and model.class_names == ["cat", "dog", "owl"]
    assert model.preprocessing.image_size == 32
    for result in (
        ic.evaluate(model, image_folder, batch_size=8),
        ic.evaluate(folder, checkpoint="last", batch_size=8),
    ):
        assert isinstance(result, ic.EvalResult)
        assert (result.top1, result.images) == (last["top1"], 15)
        assert result.loss == pytest.approx(last["loss"], rel=1e-6)
    assert ic.model_transforms(folder).preprocessing == model.preprocessing
    assert ic.model_transforms(model).preprocessing == model.preprocessing


def test_evaluation_uses_the_images_that_the_run_held_out(
    narrow_networks: None, tmp_path: Path
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    write_images(photos, per_class=10, seed=3)
    overrides = {**SMALL, "run.workspace": str(run), "schedule.epochs": 1}
    names = ("resnet18", "FP32", "convergence", "CPU")
    list(ic.train(ic.resolve(*names, data=str(photos), overrides=overrides)))
    write_images(tmp_path / "more", per_class=10, seed=4)
    for file in (tmp_path / "more").glob("*/*"):
        file.rename(photos / file.parent.name / f"more-{file.name}")
    with pytest.warns(UserWarning, match="split.json"):
        assert ic.evaluate(run).images == 6
    (run / "config.yml").write_text("data: [")
    with pytest.raises(ConfigError, match=r"config.yml is damaged"):
        ic.evaluate(run)


def test_checkpoints_of_a_run_are_chosen(small_config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    list(ic.train(small_config(run__keep_checkpoints=-1)))
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    of_step_8 = folder / "checkpoints" / "step-0000000008"
    assert equal(
        weights_of(folder, "best"), weights_of(folder / "checkpoints" / best["checkpoint"], "best")
    )
    assert equal(ic.load_model(folder, 8).state_dict(), ic.load_model(of_step_8).state_dict())
    file = of_step_8 / "model.safetensors"
    assert equal(ic.load_model(file).state_dict(), ic.load_model(of_step_8).state_dict())
    assert not equal(weights_of(folder, "last"), ic.load_model(of_step_8).state_dict())
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        ic.load_model(folder, 5)
    with pytest.raises(ConfigError, match="cannot be 'newest'"):
        ic.load_model(folder, "newest")
    with pytest.raises(ConfigError, match="chooses among the checkpoints of a run"):
        ic.load_model(of_step_8, "last")
    with pytest.raises(CheckpointError, match="no moving average"):
        ic.load_model(folder, use_ema=True)
    file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        ic.load_model(folder, 8)


def test_moving_average_is_loaded_on_request(small_config: Config, tmp_path: Path) -> None:
    records = list(ic.train(small_config(ema__decay=0.5)))
    last = [r.values for r in records if r.kind == "validation_ema"][-1]
    with pytest.warns(UserWarning, match="has a moving average too"):
        plain = ic.load_model(tmp_path / "run", "last")
    average = ic.load_model(tmp_path / "run", "last", use_ema=True)
    assert not equal(plain.state_dict(), average.state_dict())
    result = ic.evaluate(average, small_config().data.path, batch_size=8)
    assert result.loss == pytest.approx(last["loss"], rel=1e-6)


def test_labels_are_mapped_by_name(
    trained: tuple[Path, list[ic.Record]], image_folder: Path, tmp_path: Path
) -> None:
    folder, _ = trained
    part = tmp_path / "part" / "val"
    part.mkdir(parents=True)
    for name in ("dog", "owl"):  # labels 0 and 1 of this folder, 1 and 2 of the model
        (part / name).symlink_to(image_folder / "val" / name)
    model = ic.load_model(folder, "last")
    model.eval()
    transform = ic.model_transforms(model)
    hits = 0
    for label, name in ((1, "dog"), (2, "owl")):
        for path in (part / name).iterdir():
            with torch.no_grad():
                hits += int(model(transform(path)[None]).argmax()) == label
    with pytest.warns(UserWarning, match="mapped to the model's by class name"):
        result = ic.evaluate(model, part.parent)
    assert result.images == 10
    assert result.top1 == 10.0 * hits


def test_a_model_without_names_is_warned_about(image_folder: Path, narrow_networks: None) -> None:
    model = build("resnet18", 3)
    model.preprocessing = Preprocessing(image_size=32, resize=32)
    with pytest.warns(UserWarning, match="does not name its classes"):
        assert ic.evaluate(model, image_folder).images == 15
    assert model.training


def test_evaluation_names_what_is_missing(
    narrow_networks: None, image_folder: Path, tmp_path: Path
) -> None:
    model = build("resnet18", 3)
    with pytest.raises(ConfigError, match="evaluate needs data"):
        ic.evaluate(model)
    with pytest.raises(ConfigError, match="unknown precision 'FP8'"):
        ic.evaluate(model, image_folder, precision="FP8")
    with pytest.raises(ConfigError, match="Linear does not state its preprocessing"):
        ic.evaluate(torch.nn.Linear(2, 2), image_folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*absent"):
        ic.load_model(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        ic.model_transforms(tmp_path / "empty")
