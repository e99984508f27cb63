"""Save and load models as safetensors files, which contain no pickle.

A file's metadata is enough to rebuild its model: ``model``, ``num_classes``, ``se_reduction``,
``preprocessing`` and ``format_version``, each a JSON value, ``decoding`` for a trained model, and
the ``format: pt`` that other readers expect.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from image_classification.core.errors import CheckpointError, ConfigError, WorkspaceError
from image_classification.core.files import replacement_file
from image_classification.core.types import Decoding
from image_classification.models import build
from image_classification.models.spec import (
    MODELS,
    ModelOptions,
    Preprocessing,
    check_options,
)

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

    decoding: how its training images were decoded; None if the file does not state it.
    """

    name: str
    num_classes: int
    se_reduction: str
    preprocessing: Preprocessing
    decoding: Decoding | None = None


def model_metadata(
    name: str,
    num_classes: int = 1000,
    *,
    se_reduction: str = "paper",
    preprocessing: Preprocessing | None = None,
    decoding: Decoding | None = None,
) -> dict[str, str]:
    """Return the metadata from which `load_model` rebuilds the model.

    preprocessing: by default, that of the model's published runs.

    Raises:
        ConfigError: unknown model, or an option it does not have.
    """
    spec = MODELS.get(name)
    check_options(spec, ModelOptions(num_classes=num_classes, se_reduction=se_reduction))
    header = {
        "format": "pt",
        "format_version": json.dumps(FORMAT_VERSION),
        "model": json.dumps(name),
        "num_classes": json.dumps(num_classes),
        "se_reduction": json.dumps(se_reduction),
        "preprocessing": json.dumps(asdict(preprocessing or spec.preprocessing)),
    }
    if decoding is not None:
        header["decoding"] = json.dumps(asdict(decoding))
    return header


def save_model(path: str | os.PathLike[str], model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the parameters and buffers of ``model`` to ``path`` atomically.

    metadata: that of `model_metadata`; further keys may be added. Tensors keep their dtype, but
    not their memory format and device.

    Raises:
        ValueError: metadata describes another model. WorkspaceError: the file cannot be written.
    """
    path = Path(path)
    try:
        header = _parse_header(metadata, path)
    except CheckpointError as error:
        raise ValueError(f"not metadata of model_metadata: {error.message}") from error
    difference = _difference(_skeleton(header).state_dict(), model.state_dict())
    if difference:
        raise ValueError(f"the metadata describes another model: {difference}")
    tensors = model.state_dict()
    try:
        with replacement_file(path) as file:
            write_tensors(file, tensors, metadata)
    except OSError as error:
        size_mb = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6
        raise WorkspaceError(
            f"cannot write {path}: {error.strerror}; give a writable place with {size_mb:.0f} MB "
            "free"
        ) from error


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
    path = Path(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
    return _parse_header(metadata, path)


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Rebuild the model of ``path`` with its weights on the CPU, in training mode.

    Torch's random state does not change.

    Raises:
        CheckpointError: as `read_header`, or the weights do not match the metadata.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata, tensors = file.metadata() or {}, _tensors(file)
    model = _skeleton(_parse_header(metadata, path)).to_empty(device="cpu")
    load_state(model, tensors, where=str(path))
    return model


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the tensors of ``path`` into ``model``, ignoring the file's metadata.

    Raises:
        CheckpointError: missing, damaged, not safetensors, or tensors that do not match; the
            model is then unchanged.
    """
    path = Path(path)
    with _opened(path) as file:
        tensors = _tensors(file)
    load_state(model, tensors, where=str(path))


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy ``state`` into ``model``; names and shapes must match, and no precision may be lost.

    where: name of the source in messages. Half-precision weights are widened to float32.

    Raises:
        CheckpointError: the differences; the model is then unchanged.
    """
    expected = model.state_dict()
    difference = _difference(expected, state)
    if difference:
        widths = _classifier_widths(model, expected, state)
        if widths is not None:
            raise CheckpointError(
                f"{where} classifies {widths[0]} classes and the model {widths[1]}: "
                f"give --num_classes {widths[0]}"
            )
        raise CheckpointError(
            f"{where} does not fit the model: {difference}; "
            "name the model and options these weights were made with"
        )
    model.load_state_dict(dict(state), strict=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
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
            f"{path} is damaged or no safetensors file ({error}): copy it again from its source"
        ) from error


def _tensors(file: Any) -> dict[str, torch.Tensor]:
    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _parse_header(metadata: Mapping[str, str], path: Path) -> ModelHeader:
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
        check_options(
            MODELS.get(name), ModelOptions(num_classes=num_classes, se_reduction=se_reduction)
        )
        preprocessing = _parse_preprocessing(json.loads(metadata["preprocessing"]))
        decoding = _parse_decoding(metadata.get("decoding"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.message}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has unusable model metadata ({type(error).__name__}: {error}): "
            "write it again with save_model"
        ) from error
    return ModelHeader(name, num_classes, se_reduction, preprocessing, decoding)


def _parse_decoding(value: str | None) -> Decoding | None:
    """Parse `Decoding`; raise ValueError or TypeError if it is damaged."""
    if value is None:
        return None
    found = Decoding(**json.loads(value))
    for field, name in asdict(found).items():
        if not isinstance(name, str):
            raise ValueError(f"decoding.{field} cannot be {name!r}")
    return found


def _parse_preprocessing(values: dict[str, Any]) -> Preprocessing:
    """Parse `Preprocessing`; raise ValueError or TypeError if it is damaged."""
    default = asdict(Preprocessing())
    if values.keys() != default.keys():
        raise ValueError(f"preprocessing has keys {sorted(values)}, not {sorted(default)}")
    for key, value in values.items():
        if isinstance(default[key], tuple):
            if len(value) != len(default[key]):
                raise ValueError(f"preprocessing.{key} has {len(value)} values")
            values[key] = tuple(float(channel) for channel in value)
        elif type(value) is not type(default[key]):
            raise ValueError(f"preprocessing.{key} cannot be {value!r}")
    return Preprocessing(**values)


def _skeleton(header: ModelHeader) -> nn.Module:
    """Build the model on the meta device, without allocating or initializing weights."""
    with torch.device("meta"):
        return build(header.name, header.num_classes, se_reduction=header.se_reduction)


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


def _classifier_widths(
    model: nn.Module, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> tuple[int, int] | None:
    """Return the number of classes of state and model if nothing else differs, or None.

    The classifier is the model's last dense layer.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        return None
    weight, bias = f"{layers[-1]}.weight", f"{layers[-1]}.bias"
    if not {weight, bias} <= expected.keys() & state.keys():
        return None
    rest = [
        {key: tensor for key, tensor in side.items() if key not in (weight, bias)}
        for side in (expected, state)
    ]
    if _difference(*rest) or state[weight].shape[1:] != expected[weight].shape[1:]:
        return None
    return state[weight].shape[0], expected[weight].shape[0]
