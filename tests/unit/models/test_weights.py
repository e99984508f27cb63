import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from image_classification import models
from image_classification.config.schema import DataConfig
from image_classification.core.errors import CheckpointError, ConfigError
from image_classification.models import Preprocessing
from image_classification.models.weights import (
    ModelHeader,
    load_model,
    load_state,
    load_weights,
    model_metadata,
    read_header,
)
from tests.support.models import save_model


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_model(path, models.build("resnet18", 7), model_metadata("resnet18", 7))
    return path.read_bytes()


@pytest.fixture
def saved(saved_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved_bytes)
    return path


def assert_one_line(error: pytest.ExceptionInfo[BaseException], path: Path) -> None:
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_saved_model_is_loaded_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = models.build("se-resnet50", 7, se_reduction="fixed16")
    model(torch.randn(2, 3, 32, 32))  # updates the running statistics
    path = tmp_path / "model.safetensors"
    save_model(path, model, model_metadata("se-resnet50", 7, se_reduction="fixed16"))
    loaded = load_model(path)
    assert list(loaded.state_dict()) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
        assert loaded.state_dict()[key].dtype == value.dtype
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())


def test_loading_does_not_change_the_random_state(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_model_is_independent_of_its_file(saved: Path) -> None:
    loaded = load_model(saved)
    before = loaded.state_dict()["fc.weight"].clone()
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(loaded.state_dict()["fc.weight"], before)


def test_channels_last_weights_are_saved_contiguous(tmp_path: Path) -> None:
    model = models.build("resnet18", 7)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = model.state_dict()["conv1.weight"]
    assert not weight.is_contiguous()
    path = tmp_path / "model.safetensors"
    save_model(path, model, model_metadata("resnet18", 7))
    assert torch.equal(load_file(path)["conv1.weight"], weight)
    assert torch.equal(load_model(path).state_dict()["conv1.weight"], weight)


def test_metadata_is_json(tmp_path: Path) -> None:
    data = DataConfig(image_size=64, resize=72, interpolation="bicubic", mean=(0.5, 0.5, 0.25))
    path = tmp_path / "model.safetensors"
    metadata = model_metadata("resnet18", 7, preprocessing=Preprocessing.of(data))
    save_model(path, models.build("resnet18", 7), {**metadata, "note": "kept"})
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "pt"
    assert header["note"] == "kept"
    assert json.loads(header["model"]) == "resnet18"
    assert json.loads(header["num_classes"]) == 7
    assert json.loads(header["preprocessing"]) == {
        "image_size": 64,
        "resize": 72,
        "resize_mode": "short_side",
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.5, 0.5, 0.25],
        "std": [0.229, 0.224, 0.225],
    }
    assert read_header(path) == ModelHeader("resnet18", 7, "paper", Preprocessing.of(data))


def test_metadata_with_an_inapplicable_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not apply to resnet50"):
        model_metadata("resnet50", se_reduction="fixed16")
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        model_metadata("resnet5o")


@pytest.mark.parametrize("read", [load_model, read_header])
def test_damaged_files_are_refused(saved: Path, read) -> None:
    whole = saved.read_bytes()
    header_bytes = struct.unpack("<Q", whole[:8])[0]
    for damaged in (whole[:-1], whole[: 8 + header_bytes // 2], whole[:5], b"", whole + b"\0"):
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged or not a safetensors file") as error:
            read(saved)
        assert_one_line(error, saved)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_files_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="pickle-based PyTorch file") as error:
        load_weights(nn.Linear(2, 2), path)
    assert_one_line(error, path)


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*gone\.safetensors"):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read .*directory"):
        load_model(tmp_path)


def test_file_without_metadata_loads_only_into_a_given_model(tmp_path: Path) -> None:
    source = models.build("resnet18", 7)
    path = tmp_path / "plain.safetensors"
    save_file(source.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not say which model.*--pretrained-from-file"):
        load_model(path)
    target = models.build("resnet18", 7)
    load_weights(target, path)
    assert torch.equal(target.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": '"resnet19"'}, "unknown model 'resnet19'; did you mean 'resnet18'"),
        ({"model": "resnet18"}, "unusable model metadata"),
        ({"model": "[1]"}, "unusable model metadata"),
        ({"num_classes": '"7"'}, "unusable model metadata"),
        ({"num_classes": "0"}, "num_classes must be at least 1"),
        ({"se_reduction": '"fixed16"'}, "does not apply to resnet18"),
        ({"format_version": "2"}, "metadata of format 2, this release reads 1"),
        ({"preprocessing": "{}"}, "unusable model metadata"),
        ({"preprocessing": "[]"}, "unusable model metadata"),
        ({"num_classes": "8"}, r"classifies 7 classes and the model 8"),
        ({"model": '"resnet34"'}, r"does not fit the model: \d+ missing"),
    ],
)
def test_unusable_metadata_is_refused(saved: Path, change: dict[str, str], message: str) -> None:
    save_file(load_file(saved), saved, metadata={**model_metadata("resnet18", 7), **change})
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(saved)
    assert_one_line(error, saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_size", "224"), ("mean", [0.5, 0.5]), ("std", 1.0), ("antialias", 1), ("extra", 1)],
)
def test_unusable_preprocessing_is_refused(saved: Path, key: str, value: object) -> None:
    metadata = model_metadata("resnet18", 7)
    changed = json.loads(metadata["preprocessing"]) | {key: value}
    save_file(load_file(saved), saved, metadata=metadata | {"preprocessing": json.dumps(changed)})
    with pytest.raises(CheckpointError, match="unusable model metadata"):
        read_header(saved)


def test_other_number_of_classes_names_the_option(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="--num_classes 7") as error:
        load_weights(models.build("resnet18", 10), saved)
    assert_one_line(error, saved)


def test_differences_are_counted_and_listed(saved: Path) -> None:
    state = load_file(saved)
    del state["bn1.weight"], state["layer1.0.conv1.weight"]
    state["other.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["fc.bias"] = torch.zeros(7, dtype=torch.int64)
    model = models.build("resnet18", 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_state(model, state, where="file.safetensors")
    assert str(error.value) == (
        "file.safetensors does not fit the model: "
        "2 missing (bn1.weight; layer1.0.conv1.weight), 1 unexpected (other.weight), "
        "1 of another shape (conv1.weight: [64, 3, 3, 3] for [64, 3, 7, 7]), "
        "1 of another type (fc.bias: torch.int64 for torch.float32); "
        "name the model and options these weights were made with"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_long_lists_of_differences_are_shortened(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"122 missing \(conv1.weight; .*; …\)") as error:
        load_state(models.build("resnet18", 7), {}, where=str(saved))
    assert len(error.value.message) < 400


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = models.build("resnet18", 7).to(dtype).state_dict()
    path = tmp_path / "model.safetensors"
    save_file(halves, path, metadata=model_metadata("resnet18", 7))
    loaded = load_model(path)
    assert loaded.state_dict()["fc.weight"].dtype == torch.float32
    assert torch.equal(loaded.state_dict()["fc.weight"], halves["fc.weight"].float())


def test_weights_are_never_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(models.build("resnet18", 7).double().state_dict(), path)
    with pytest.raises(CheckpointError, match="of another type"):
        load_weights(models.build("resnet18", 7), path)


WRITE = """\
import sys, torch
from image_classification.models.weights import write_tensors
tensors = {
    "b.weight": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "a.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "a.count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
}
write_tensors(sys.stdout.buffer, tensors, {k: k for k in sorted(set("qwertyuiop"), key=hash)})
"""


def test_equal_tensors_are_written_as_equal_bytes(tmp_path: Path) -> None:
    written = [
        subprocess.run(
            [sys.executable, "-c", WRITE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert written[0] == written[1]
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(written[0])
    found = load_file(path)
    assert torch.equal(found["b.weight"], torch.arange(24.0).reshape(2, 3, 2, 2))
    assert torch.equal(found["a.half"], torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert found["a.count"] == 7 and found["empty"].shape == (0, 3)
    assert found["flags"].tolist() == [True, False]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {key: key for key in "qwertyuiop"}
