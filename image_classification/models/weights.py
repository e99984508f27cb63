"""Save and load models as safetensors files, which contain no pickle.

A file's metadata is enough to rebuild its model: ``model``, ``num_classes``, ``se_reduction``,
``preprocessing`` and ``format_version``, each a JSON value, ``decoding`` and ``classes`` (the names
in the order of the labels) for a trained model, and the ``format: pt`` that other readers expect.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from image_classification.core.errors import CheckpointError, ConfigError
from image_classification.core.types import Decoding
from image_classification.core.units import some_of
from image_classification.models import ModelOptions, Preprocessing, build, spec
from image_classification.models.classifier import Classifier

FORMAT_VERSION = 1
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_MAX_LISTED = 3


@dataclass(frozen=True)
class ModelHeader:
    """The model that a file's weights belong to.

    decoding: how its training images were decoded; classes: the class names in the order of the
    labels; each None if the file does not state it.
    """

    name: str
    num_classes: int
    se_reduction: str
    preprocessing: Preprocessing
    decoding: Decoding | None = None
    classes: tuple[str, ...] | None = None


def model_metadata(
    name: str,
    num_classes: int = 1000,
    *,
    se_reduction: str = "paper",
    preprocessing: Preprocessing | None = None,
    decoding: Decoding | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, str]:
    """Return the metadata from which `load_model` rebuilds the model.

    preprocessing: by default, that of the model's published runs.

    Raises:
        ConfigError: unknown model, or an option it does not have.
    """
    model = spec(name)
    model.check(ModelOptions(num_classes=num_classes, se_reduction=se_reduction))
    header = {
        "format": "pt",
        "format_version": json.dumps(FORMAT_VERSION),
        "model": json.dumps(name),
        "num_classes": json.dumps(num_classes),
        "se_reduction": json.dumps(se_reduction),
        "preprocessing": json.dumps(_stated(preprocessing or model.preprocessing)),
    }
    if decoding is not None:
        header["decoding"] = json.dumps(asdict(decoding))
    if classes is not None:
        header["classes"] = json.dumps(list(classes))
    return header


def _stated(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the values for the header: without the orientation if it is that of older files."""
    values = asdict(preprocessing)
    if not preprocessing.exif_orientation:
        del values["exif_orientation"]
    return values


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` (any device and layout) in safetensors' format, reproducible to the byte.

    The library writes the metadata in an order that differs from call to call; here it is sorted.
    As in the library, wider dtypes come first, so that every tensor is aligned.

    Raises:
        KeyError: a dtype the format does not have. OSError: the file cannot be written.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "data_offsets": [start, end],
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
        }
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in names:
        row_major = tensors[name].detach().cpu().contiguous()
        file.write(row_major.reshape(-1).view(torch.uint8).numpy().data)


def read_header(path: str | os.PathLike[str]) -> ModelHeader:
    """Read the metadata of ``path`` without its weights.

    Raises:
        CheckpointError: missing, damaged, not safetensors, or without usable metadata.
    """
    with _opened(path) as file:
        return _parse_header(file.metadata() or {}, path)


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Return the class names that ``path`` states, in the order of the labels; None if it has none.

    Raises:
        CheckpointError: as `read_header`, but other metadata may be missing.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        try:
            return _parse_classes(metadata)
        except (TypeError, ValueError) as error:
            raise _unusable(path, error) from error


def load_model(path: str | os.PathLike[str]) -> Classifier:
    """Rebuild the model of ``path`` with its weights on the CPU, in training mode.

    It has the file's preprocessing and class names. Torch's random state does not change.

    Raises:
        CheckpointError: as `read_header`, or the weights do not match the metadata.
    """
    header, tensors = read_header(path), _read_tensors(path)
    with torch.device("meta"):
        model = build(header.name, header.num_classes, se_reduction=header.se_reduction)
    model = model.to_empty(device="cpu")
    load_state(model, tensors, where=str(path))
    _describe(model, header)
    return model


def _describe(model: Classifier, header: ModelHeader) -> None:
    model.preprocessing = header.preprocessing
    if header.classes is not None and model.num_classes == header.num_classes:
        model.class_names = list(header.classes)


def load_into_new(model: Classifier, path: str | os.PathLike[str], *, files_classes: bool) -> None:
    """Load the weights of ``path`` into a new model; the metadata may be missing.

    files_classes: if the file has another number of classes, give the model a classifier of that
    width; otherwise leave the model's own classifier as it is.

    Raises:
        CheckpointError: as `load_weights`, or the metadata name another model.
    """
    header = _check_model(model, path)
    state, own = _read_tensors(path), model.state_dict()
    given, wanted = _num_classes(own, state)
    if given != wanted and files_classes:
        model.reset_classifier(given)
    elif given != wanted:
        state |= {name: own[name] for name in list(own)[-2:]}
    load_state(model, state, where=str(path))
    if header is not None:
        _describe(model, header)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the tensors of ``path`` into ``model``; the metadata may be missing.

    Raises:
        CheckpointError: missing, damaged, not safetensors, or tensors that do not match; the
            model is then unchanged.
    """
    _check_model(model, path)
    load_state(model, _read_tensors(path), where=str(path))


def _check_model(model: nn.Module, path: str | os.PathLike[str]) -> ModelHeader | None:
    """Return the header of ``path``, None if it has none; refuse the weights of another model.

    The weights of resnet50-v1 fit resnet50, but give wrong results.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    header = _parse_header(metadata, path) if "model" in metadata else None
    if header is not None and isinstance(model, Classifier) and header.name != model.name:
        raise CheckpointError(
            f"{path} holds {header.name}, not {model.name}: choose the model {header.name}, or "
            "give another file"
        )
    return header


def load_pretrained(
    model: nn.Module, path: str | os.PathLike[str], classes: Sequence[str] | None
) -> list[str]:
    """Load ``path`` into ``model`` to train it further on ``classes``; return notes.

    classes: the data set's class names, None if unknown. The classifier's rows are put in their
    order; it keeps its initial weights if the file has other classes.

    Raises:
        CheckpointError: as `load_weights`, for anything but the classifier.
    """
    _check_model(model, path)
    state, own = _read_tensors(path), model.state_dict()
    known = read_classes(path)
    head = list(own)[-2:]  # a model's last layer is its classifier
    given, wanted = _num_classes(own, state)
    notes = []
    if known and classes and sorted(known) == sorted(classes):
        if known != tuple(classes):
            row_of = {name: row for row, name in enumerate(known)}
            rows = [row_of[name] for name in classes]
            state |= {key: state[key][rows] for key in head}
            notes = [f"the classes of {path} are in another order: its classifier was reordered"]
    elif given != wanted or (known and classes):
        theirs = f"{given} classes" + (f" ({some_of(known)})" if known else "")
        ours = f"{wanted}" + (f" ({some_of(classes)})" if classes else "")
        state |= {key: own[key] for key in head}
        notes = [
            f"{path} has {theirs}, the data set {ours}: the classifier is trained from random "
            "weights, all other layers from the file's"
        ]
    elif classes and given:
        notes = [
            f"{path} does not name its {given} classes: whether the data set has the same ones in "
            "the same order cannot be checked"
        ]
    load_state(model, state, where=str(path))
    return notes


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy ``state`` into ``model``; names and shapes must match, and no precision may be lost.

    where: name of the source in messages. Half-precision weights are widened to float32.

    Raises:
        CheckpointError: the differences; the model is then unchanged.
    """
    difference = _difference(model.state_dict(), state)
    if difference:
        given, wanted = _num_classes(model.state_dict(), state)
        if given != wanted:
            raise CheckpointError(
                f"{where} classifies {given} classes and the model {wanted}: "
                f"give --num_classes {given}"
            )
        raise CheckpointError(
            f"{where} does not fit the model: {difference}; "
            "name the model and options these weights were made with"
        )
    model.load_state_dict(dict(state), strict=True)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file; raise CheckpointError if it cannot be read."""
    try:
        with open(path, "rb") as f:
            first = f.read(4)
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path}: check the path") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path") from error
    except SafetensorError as error:
        # torch.save writes zip files, or formerly a pickle, which begins with its protocol mark.
        if first == b"PK\x03\x04" or first[:1] == b"\x80":
            raise CheckpointError(
                f"{path} is a pickle-based PyTorch file, which is never loaded here: write its "
                "state dict with safetensors.torch.save_file and give that file"
            ) from error
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}): copy it again from its source"
        ) from error


def _read_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _parse_header(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> ModelHeader:
    if "model" not in metadata:
        raise CheckpointError(
            f"{path} does not say which model it holds: give its weights to a model you name, "
            "with --model NAME --pretrained-from-file FILE"
        )
    try:
        version = json.loads(metadata["format_version"])
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has metadata of format {version}, this release reads {FORMAT_VERSION}: "
                "use the release that wrote it"
            )
        name, num_classes, se_reduction = (
            json.loads(metadata[key]) for key in ("model", "num_classes", "se_reduction")
        )
        spec(name).check(ModelOptions(num_classes=num_classes, se_reduction=se_reduction))
        examples = asdict(Preprocessing())
        preprocessing = Preprocessing(**_parse_fields(metadata, "preprocessing", examples))
        decoding = None
        if "decoding" in metadata:
            examples = {"decoder": "", "resampler": ""}
            decoding = Decoding(**_parse_fields(metadata, "decoding", examples))
        classes = _parse_classes(metadata)
        if classes is not None and len(classes) != num_classes:
            raise ValueError(f"{len(classes)} class names for {num_classes} classes")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.message}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(path, error) from error
    return ModelHeader(name, num_classes, se_reduction, preprocessing, decoding, classes)


def _unusable(path: str | os.PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} has unusable model metadata ({type(error).__name__}: {error}): "
        "save the model again"
    )


def _parse_classes(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    if "classes" not in metadata:
        return None
    names = json.loads(metadata["classes"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes is not a list of names")
    if len(set(names)) != len(names):
        raise ValueError("classes names a class twice")
    return tuple(names)


def _parse_fields(
    metadata: Mapping[str, str], name: str, examples: Mapping[str, Any]
) -> dict[str, Any]:
    """Parse ``metadata[name]``, an object with the keys of ``examples`` and values like theirs.

    Raises TypeError, ValueError or AttributeError if it is damaged.
    """
    values: dict[str, Any] = json.loads(metadata[name])
    if "exif_orientation" in examples:
        values.setdefault("exif_orientation", False)  # not stated if false, see `_stated`
    if values.keys() != examples.keys():
        raise ValueError(f"{name} has keys {sorted(values)}, not {sorted(examples)}")
    for key, value in values.items():
        example = examples[key]
        if isinstance(example, tuple):
            if len(value) != len(example):
                raise ValueError(f"{name}.{key} has {len(value)} values")
            values[key] = tuple(float(channel) for channel in value)
        elif type(value) is not type(example):
            raise ValueError(f"{name}.{key} cannot be {value!r}")
    return values


def _difference(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """Describe how ``state`` differs from ``expected``; empty if they match."""
    common = [key for key in expected if key in state]
    groups = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key}: {list(state[key].shape)} for {list(expected[key].shape)}"
            for key in common
            if state[key].shape != expected[key].shape
        ],
        "of another type": [
            f"{key}: {state[key].dtype} for {expected[key].dtype}"
            for key in common
            if not _widens(state[key].dtype, expected[key].dtype)
        ],
    }
    return ", ".join(
        f"{len(items)} {kind} ({'; '.join(items[:_MAX_LISTED])}"
        f"{'; …' if len(items) > _MAX_LISTED else ''})"
        for kind, items in groups.items()
        if items
    )


def _widens(source: torch.dtype, target: torch.dtype) -> bool:
    return (
        source.is_floating_point == target.is_floating_point
        and torch.promote_types(source, target) == target
    )


def _num_classes(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> tuple[int, int]:
    """Return the classes of state and model; 0 for both if they differ in something else, too."""
    weight, bias = list(expected)[-2:]  # a model's last layer is its classifier
    if not {weight, bias} <= state.keys():
        return 0, 0
    given, wanted = state[weight].shape, expected[weight].shape
    of_given_width = {
        **expected,
        weight: expected[weight].new_empty(*given[:1], *wanted[1:]),
        bias: expected[bias].new_empty(*given[:1]),
    }
    return (0, 0) if _difference(of_given_width, state) else (given[0], wanted[0])
