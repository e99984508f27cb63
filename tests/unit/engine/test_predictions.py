"""The prediction of each image, and the details of an evaluation, with every kind of loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification.config.schema import RunConfig
from image_classification.data.formats.folder import open_index
from image_classification.engine import predictions as module
from image_classification.engine.predictions import PredictionRecorder, evaluation_details
from image_classification.engine.stop import StopRequest
from image_classification.launch.run import MODES
from image_classification.reporting.evaluation import EvaluationDetails, read_details
from tests.support.jobs import Jobs
from tests.support.loaders import loader_spec, opened

NUM_IMAGES = 15  # of the small data set


def mean_color_logits(images: torch.Tensor) -> torch.Tensor:
    """A model of three classes that depends on each image alone, to the bit."""
    return torch.stack([image.mean(dim=(1, 2)) for image in images])


def record(loader: Any, spec: Any) -> PredictionRecorder:
    """Record a loader's epoch with `mean_color_logits`."""

    class Fake:
        class config:
            batch = type("Batch", (), {"per_device_batch": spec.per_device_batch})

        world = spec
        device = torch.device("cpu")

    recorder = PredictionRecorder(Fake, loader)  # type: ignore[arg-type]
    for batch in loader.epoch(0):
        logits = mean_color_logits(batch.images)
        losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        recorder.add(logits, logits.argmax(dim=1), losses, batch.labels, batch.valid)
    return recorder


@pytest.mark.parametrize("backend", ["pytorch", "dali-cpu"])
@pytest.mark.parametrize(("batch", "world_size"), [(4, 1), (15, 1), (2, 2), (4, 3)])
def test_predictions_are_those_of_each_image(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, batch: int, world_size: int
) -> None:
    if backend == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    changes = {"split": "val", "num_classes": 3, "backend": backend, "workers": 0}
    alone = loader_spec(image_folder, **changes, per_device_batch=1)
    with opened(alone) as loader:
        logits = torch.cat([mean_color_logits(b.images) for b in loader.epoch(0)])
        names = [loader.sample_name(index) for index in range(NUM_IMAGES)]
    parts: list[torch.Tensor] = []

    def keep(part: torch.Tensor) -> torch.Tensor:
        parts.append(part)
        return part

    monkeypatch.setattr(module, "all_reduce_sum", keep)
    for rank in range(world_size):
        spec = loader_spec(
            image_folder, **changes, per_device_batch=batch, rank=rank, world_size=world_size
        )
        with opened(spec) as loader:
            recorder = record(loader, spec)
            if rank < world_size - 1:
                with pytest.raises(RuntimeError, match="order of the index"):
                    recorder.gather()  # this rank's images only
            else:
                monkeypatch.setattr(
                    module, "all_reduce_sum", lambda part: torch.stack([*parts, part]).sum(0)
                )
                found = recorder.gather()
    assert found.predicted.tolist() == logits.argmax(dim=1).tolist()
    classes = sorted({name.split("/")[1] for name in names})
    assert [classes[label] for label in found.labels] == [name.split("/")[1] for name in names]
    softmax = logits.softmax(dim=1).double()
    torch.testing.assert_close(found.probability, softmax.amax(dim=1), rtol=1e-5, atol=0)
    true = softmax.gather(1, found.labels[:, None])[:, 0]
    torch.testing.assert_close(found.true_probability, true, rtol=1e-5, atol=0)


def test_details_name_the_images_and_show_them(image_folder: Path) -> None:
    spec = loader_spec(image_folder, split="val", num_classes=3, per_device_batch=4)
    with opened(spec) as loader:
        labels = torch.arange(NUM_IMAGES) // 5
        predicted = labels.clone()
        predicted[3], predicted[7] = 2, 0
        probability = torch.full((NUM_IMAGES,), 0.5, dtype=torch.float64)
        probability[7] = 0.9
        found = module.Predictions(labels, predicted, probability, 1 - probability)
        details, thumbnails = evaluation_details(found, loader, 3)
    assert details.counts == {(0, 0): 4, (0, 2): 1, (1, 0): 1, (1, 1): 4, (2, 2): 5}
    assert [m.image for m in details.mistakes] == ["val/dog/002.JPEG", "val/cat/003.JPEG"]
    assert (details.mistakes[0].true, details.mistakes[0].predicted) == ("dog", "cat")
    assert details.mistakes[0].probability == 0.9
    assert [thumbnails[m.thumbnail or ""][:2] for m in details.mistakes] == [b"\xff\xd8"] * 2


def test_unreadable_image_is_stated(own_image_folder: Path) -> None:
    spec = loader_spec(own_image_folder, split="val", num_classes=3, per_device_batch=4)
    with opened(spec) as loader:
        (own_image_folder / "val/cat/000.JPEG").unlink()
        (own_image_folder / "val/cat/001.JPEG").write_bytes(b"no image")
        labels = torch.zeros(NUM_IMAGES, dtype=torch.int64)
        ones = torch.ones(NUM_IMAGES, dtype=torch.float64)
        details, thumbnails = evaluation_details(
            module.Predictions(labels, labels + 1, ones, 0 * ones), loader, 3
        )
    first, second, third, *_ = details.mistakes
    assert first.problem is not None and "No such file" in first.problem
    assert second.problem is not None and "001.JPEG" in second.problem
    assert (first.thumbnail, second.thumbnail) == (None, None)
    assert third.problem is None and len(thumbnails) == NUM_IMAGES - 2


def test_thumbnail_size(image_folder: Path) -> None:
    index = open_index(image_folder, "val", 3)
    from torchvision.io import decode_image, encode_jpeg

    content = index.read(0)
    height, width = decode_image(torch.from_numpy(content)).shape[1:]
    small = module.thumbnail(content, "small")
    assert decode_image(torch.frombuffer(bytearray(small), dtype=torch.uint8)).shape[1:] == (
        height,
        width,
    )
    large = encode_jpeg(torch.zeros(3, 300, 600, dtype=torch.uint8)).numpy()
    shown = module.thumbnail(large, "large")
    assert decode_image(torch.frombuffer(bytearray(shown), dtype=torch.uint8)).shape == (3, 80, 160)


def details_of(run: Any) -> EvaluationDetails:
    details = read_details(run.workspace)
    assert details is not None
    return details


def test_training_keeps_the_details_of_its_best_validation(
    small_config: Callable[..., RunConfig], open_run: Callable[..., Any], tmp_path: Path
) -> None:
    config = small_config()
    run = open_run(config)
    records = list(MODES["convergence"].records(run, StopRequest()))
    results = records[-1].values["results"]["evaluation"]
    best = max(r.values["top1"] for r in records if r.kind == "validation")
    details = details_of(run)
    assert details.images == results["images"] == NUM_IMAGES
    assert 100 * (NUM_IMAGES - details.num_mistakes) / NUM_IMAGES == pytest.approx(best)
    # A start that validates nothing keeps them.
    again = open_run(config, resume="auto")
    last = list(MODES["convergence"].records(again, StopRequest()))[-1]
    assert last.values["results"]["evaluation"] == results
    # Those of an earlier best validation are not reported as the best one's.
    other = EvaluationDetails(details.classes, {(0, 0): 1, (1, 2): 999}, ())
    other.write(run.workspace, {})
    again = open_run(config, resume="auto")
    *records, last = list(MODES["convergence"].records(again, StopRequest()))
    assert last.values["results"]["evaluation"] is None
    assert any("no details of the best validation" in str(r.values) for r in records)

    evaluation = small_config(mode="evaluate", run__workspace=str(tmp_path / "evaluation"))
    run = open_run(evaluation, resume=str(tmp_path / "run"))
    last = list(MODES["evaluate"].records(run, StopRequest()))[-1]
    details = details_of(run)
    top1 = last.values["results"]["validation"]["top1"]
    assert 100 * (NUM_IMAGES - details.num_mistakes) / NUM_IMAGES == pytest.approx(top1)
    assert details.classes == ("cat", "dog", "owl")


def test_folder_that_cannot_be_written_is_a_warning(
    small_config: Callable[..., RunConfig], open_run: Callable[..., Any]
) -> None:
    run = open_run(small_config(), max_steps=4)
    (run.workspace / "evaluation").write_text("a file in place of the folder")
    records = list(MODES["convergence"].records(run, StopRequest()))
    assert any("evaluation" in r.values.get("message", "") for r in records if r.kind == "warning")
    assert records[-1].values["results"]["validation"]["images"] == NUM_IMAGES
    assert records[-1].values["results"]["evaluation"] is None


def test_synthetic_images_have_no_details(
    small_config: Callable[..., RunConfig], open_run: Callable[..., Any]
) -> None:
    run = open_run(
        small_config(
            data__backend="synthetic", data__synthetic_train_images=8, data__synthetic_val_images=9
        ),
        max_steps=1,
    )
    records = list(MODES["convergence"].records(run, StopRequest()))
    assert any(r.kind == "validation" for r in records)
    assert not (run.workspace / "evaluation").exists()
    assert records[-1].values["results"].get("evaluation") is None


@pytest.mark.slow
def test_two_processes_write_the_details_of_one(
    jobs: Jobs, small_arguments: list[str], tmp_path: Path
) -> None:
    train = [*small_arguments, "--set=schedule.epochs=1"]
    assert jobs.start(train, tmp_path / "run").wait() == 0
    evaluate = [a.replace("convergence", "evaluate") for a in small_arguments]
    texts = []
    for count in (1, 2):
        folder = tmp_path / f"on-{count}"
        devices = f"--set=platform.num_devices={count}"
        split = f"--set=batch.per_device={8 // count}"
        job = jobs.start([*evaluate, devices, split, f"--resume={tmp_path / 'run'}"], folder)
        assert job.wait() == 0, job.stderr
        files = ("confusion.csv", "classes.csv")
        texts.append([(folder / "evaluation" / name).read_text() for name in files])
        report = json.loads((folder / "report.json").read_text())
        assert report["results"]["evaluation"]["images"] == NUM_IMAGES
    assert texts[0] == texts[1]
