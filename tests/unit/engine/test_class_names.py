"""Labels are mapped to the model's by class name in evaluation, fine-tuning and resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_classification.core.errors import CheckpointError, DataError
from image_classification.data.formats.folder import FORMATS, open_index
from image_classification.data.formats.index import ClassesError
from image_classification.data.tools.pack import pack
from image_classification.engine.checkpoints import files
from image_classification.engine.stop import StopRequest
from image_classification.launch.run import MODES
from image_classification.models import build
from image_classification.models.weights import load_pretrained, read_header
from tests.conftest import CLASSES
from tests.support.loaders import loader_spec, opened

ORDER = ("owl", "cat", "dog")


@pytest.fixture(scope="session")
def reordered(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The images of `image_folder` in each format, with the classes in another order."""
    root = tmp_path_factory.mktemp("reordered")
    for split in ("train", "val"):
        for number, name in enumerate(ORDER):
            shutil.copytree(image_folder / split / name, root / "numbered" / split / str(number))
    sets = {}
    for name in FORMATS:
        if name != "folder":
            sets[name] = root / name
            pack(root / "numbered", sets[name], name)
            (sets[name] / "classes.json").write_text(json.dumps(ORDER))
    return sets


@pytest.fixture
def drive(small_config, open_run, tmp_path):
    """Run a mode on a data set; return the run, its results and its warnings."""

    def run(data: Path, mode: str = "evaluate", folder: str = "new", config=None, **control):
        config = config or small_config(mode)
        config = replace(config, data=replace(config.data, path=str(data)))
        run = open_run(config, workspace=str(tmp_path / folder), **control)
        records = list(MODES[mode].records(run, StopRequest()))
        notes = [r.values["message"] for r in records if r.kind == "warning"]
        return run, records[-1].values["results"], notes

    return run


@pytest.fixture
def trained(drive, image_folder, tmp_path):
    run, _, notes = drive(image_folder, "convergence", "trained", max_steps=4)
    assert notes == []
    assert run.classes == CLASSES
    return run.workspace


def weights_of(folder: Path) -> Path:
    return files.weights_file(files.listed(folder / "checkpoints")[-1].path)


def test_names_travel_in_the_checkpoint(trained) -> None:
    assert read_header(weights_of(trained)).classes == CLASSES


@pytest.mark.parametrize("layout", [name for name in FORMATS if name != "folder"])
def test_evaluation_on_another_class_order_gives_the_same_figures(
    drive, trained, image_folder, reordered, small_config, layout
) -> None:
    _, expected, notes = drive(image_folder, resume=str(trained))
    assert notes == []
    run, found, notes = drive(reordered[layout], resume=str(trained))
    assert found["validation"] == pytest.approx(expected["validation"])
    (note,) = notes
    assert "mapped to the model's by class name: cat 1 -> 0, dog 2 -> 1, owl 0 -> 2" in note
    assert run.classes == CLASSES
    config = small_config("evaluate", model__pretrained_from_file=str(weights_of(trained)))
    _, from_file, notes = drive(reordered[layout], config=config)
    assert from_file["validation"] == pytest.approx(expected["validation"])
    assert len(notes) == 1


@pytest.mark.parametrize("layout", [name for name in FORMATS if name != "folder"])
def test_a_model_of_another_class_order_is_evaluated_on_folders(
    drive, image_folder, reordered, layout
) -> None:
    run, _, _ = drive(reordered[layout], "convergence", "trained", max_steps=4)
    assert run.classes == ORDER
    _, expected, _ = drive(reordered[layout], resume=str(run.workspace))
    _, found, notes = drive(image_folder, resume=str(run.workspace))
    assert found["validation"] == pytest.approx(expected["validation"])
    assert "mapped" in notes[0]


def test_evaluation_on_some_of_the_classes(drive, trained, own_image_folder) -> None:
    for split in ("train", "val"):
        shutil.rmtree(own_image_folder / split / "cat")
    run, found, (note,) = drive(own_image_folder, resume=str(trained))
    assert "has 2 of the model's 3 classes (dog, owl)" in note
    assert found["validation"]["images"] == 10
    labels = torch.cat([batch.labels[batch.valid] for batch in run.val_loader.epoch(0)])
    assert sorted(set(labels.tolist())) == [1, 2]


def test_evaluation_on_unknown_classes_is_refused(drive, trained, own_image_folder) -> None:
    for split in ("train", "val"):
        (own_image_folder / split / "cat").rename(own_image_folder / split / "lynx")
    with pytest.raises(ClassesError, match=r"than the model: lynx; the model knows cat, dog, owl"):
        drive(own_image_folder, resume=str(trained))


def test_weights_without_names_are_noted(drive, trained, image_folder, tmp_path, small_config):
    save_file(load_file(weights_of(trained)), tmp_path / "foreign.safetensors")
    file = str(tmp_path / "foreign.safetensors")
    config = small_config("evaluate", model__pretrained_from_file=file)
    _, _, notes = drive(image_folder, config=config)
    assert "does not name its classes" in notes[0]


@pytest.mark.parametrize(("data", "is_refused"), [("same", False), ("reordered", True)])
def test_old_checkpoint_with_only_a_hash_of_the_names(
    drive, trained, image_folder, reordered, data, is_refused
) -> None:
    checkpoint = files.listed(trained / "checkpoints")[-1]
    content = files.load(checkpoint.path)
    header = {"model": '"resnet18"'}
    files.save(trained / "checkpoints", checkpoint.step, replace(content, model_header=header))
    if is_refused:
        with pytest.raises(CheckpointError, match="other class names"):
            drive(reordered["webdataset"], resume=str(trained))
    else:
        assert not any("class" in n for n in drive(image_folder, resume=str(trained))[2])


def test_resuming_maps_labels_and_refuses_other_classes(
    drive, trained, image_folder, own_image_folder, reordered
) -> None:
    run, _, notes = drive(
        reordered["webdataset"], "convergence", "trained", resume="auto", max_steps=5
    )
    assert "mapped to the model's by class name" in notes[0]
    assert run.classes == CLASSES
    for split in ("train", "val"):
        shutil.rmtree(own_image_folder / split / "cat")
    with pytest.raises(CheckpointError, match="other class names than the model: they lack cat"):
        drive(own_image_folder, "convergence", "trained", resume="auto", max_steps=6)


def test_fine_tuning_keeps_the_classifier_only_for_the_same_names(
    drive, trained, reordered, own_image_folder, small_config
) -> None:
    file = str(weights_of(trained))
    config = small_config(model__pretrained_from_file=file, run__max_steps=1, optim__lr=0.0)
    run, _, (note,) = drive(reordered["tfrecord"], "convergence", "tuned", config)
    assert "its classifier was reordered" in note
    rows = load_file(file)["fc.weight"][[CLASSES.index(name) for name in ORDER]]
    assert torch.equal(run.parts.model.fc.weight.detach(), rows)
    for split in ("train", "val"):
        (own_image_folder / split / "cat").rename(own_image_folder / split / "lynx")
    run, _, (note,) = drive(own_image_folder, "convergence", "other", config)
    assert "(cat, dog, owl), the data set 3 (dog, lynx, owl): the classifier is trained" in note
    assert not torch.equal(run.parts.model.fc.weight.detach(), load_file(file)["fc.weight"])
    assert torch.equal(
        run.parts.model.conv1.weight.detach(), load_file(file)["conv1.weight"].contiguous()
    )


def test_fine_tuning_on_another_number_of_classes(trained) -> None:
    model = build("resnet18", 5)
    before = model.state_dict()["fc.weight"].clone()
    (note,) = load_pretrained(model, weights_of(trained), None)
    assert "has 3 classes (cat, dog, owl), the data set 5" in note
    assert torch.equal(model.state_dict()["fc.weight"], before)


def test_a_data_set_without_names_is_noted(reordered, tmp_path) -> None:
    root = tmp_path / "unnamed"
    shutil.copytree(reordered["webdataset"], root)
    (root / "classes.json").unlink()
    index = open_index(root, "val", 3)
    assert index.class_names is None
    mapped = open_index(root, "val", 3, classes=CLASSES)
    assert "does not name its classes" in mapped.notes[-1]
    assert mapped.labels.tolist() == index.labels.tolist()
    with pytest.raises(DataError, match="has 3 classes, the model 2"):
        open_index(root, "val", 2, classes=("cat", "dog"))
    pack(root, tmp_path / "again", "tfrecord")
    assert not (tmp_path / "again" / "classes.json").exists()


@pytest.mark.parametrize("backend", ["pytorch", "dali-cpu"])
def test_every_loader_yields_the_models_labels(reordered, image_folder, backend) -> None:
    if backend == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    common = {"split": "val", "num_classes": 3, "classes": CLASSES, "backend": backend}
    found = {}
    for name, root in {"folder": image_folder, **reordered}.items():
        with opened(loader_spec(root, **common)) as loader:
            batches = list(loader.epoch(0))
            labels = torch.cat([batch.labels[batch.valid] for batch in batches]).tolist()
            images = [image.sum().item() for b in batches for image in b.images[b.valid]]
            assert (loader.classes, loader.class_names) == (CLASSES, CLASSES)
        found[name] = sorted(zip(images, labels, strict=True))
    for name in reordered:
        assert found[name] == found["folder"], name
