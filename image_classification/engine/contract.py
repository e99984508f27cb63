"""Whether images reach a network as they did where its weights were trained.

Interpolation, antialiasing and decoder alone have moved published top-1 by up to 1.5 points
(NVIDIA/DALI#422): a figure under another contract is not the one that the weights stand for.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from image_classification.config.schema import DataConfig
from image_classification.core.errors import CheckpointError
from image_classification.data.backend import DECODING
from image_classification.models.spec import Preprocessing
from image_classification.models.weights import read_header


def other_contract(weights: Path, data: DataConfig) -> list[str]:
    """Return warnings on what differs between ``weights``' images and those of ``data``."""
    try:
        header = read_header(weights)
    except CheckpointError:  # weights alone, which is allowed: they have been loaded already
        return [
            f"{weights} does not say how the images of its training were resized and decoded: "
            f"check data.resize, data.interpolation and data.antialias against its source"
        ]
    theirs, ours = asdict(header.preprocessing), asdict(Preprocessing.of(data))
    differing = [key for key in ours if theirs[key] != ours[key]]
    if not differing:
        return other_decoding(weights, data)
    listed = ", ".join(f"{key} {theirs[key]} -> {ours[key]}" for key in differing)
    remedy = " ".join(f"--set data.{key}={_as_written(theirs[key])}" for key in differing)
    return [
        f"{weights} was validated on images made otherwise ({listed}), so its top-1 may differ: "
        f"{remedy} evaluates as it was",
        *other_decoding(weights, data),
    ]


def other_decoding(weights: Path, data: DataConfig) -> list[str]:
    """Return a warning where ``data``'s backend makes other pixels than ``weights`` was given."""
    header = read_header(weights)
    ours = DECODING[data.backend]
    if header.decoding is None or header.decoding == ours:
        return []
    theirs = header.decoding
    same = [name for name, decoding in DECODING.items() if decoding == theirs]
    remedy = f": --data-backend {' or '.join(same)} makes the same ones" if same else ""
    return [
        f"{weights} was trained on images decoded by {theirs.decoder} and scaled by "
        f"{theirs.resampler}; {data.backend} has them by {ours.decoder} and {ours.resampler}, "
        f"which are slightly other pixels{remedy}"
    ]


def _as_written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value)
