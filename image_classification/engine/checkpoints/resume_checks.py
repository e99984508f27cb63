"""Whether images reach a network as they did where its weights were trained.

Interpolation, antialiasing and decoder alone have moved published top-1 by up to 1.5 points
(NVIDIA/DALI#422): a figure under another contract is not the one that the weights stand for.

A run continued under other settings (``run.allow_changes``): what carries over, what cannot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from image_classification.config.checks import KEYS
from image_classification.config.schema import DataConfig
from image_classification.core.errors import CheckpointError
from image_classification.data.loaders.protocol import DECODING
from image_classification.engine.build import Run
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


# Weights of one do not fit the other, whatever is allowed.
_FIXED = ("model.name", "model.num_classes", "model.se_reduction")


@dataclass(frozen=True)
class DataSet:
    """What of a data set the order of its samples and their labels rest on.

    classes: sha256 of the class names, in the order of their labels.
    """

    train_images: int
    classes: str
    steps_per_epoch: int
    global_batch: int

    @classmethod
    def of(cls, run: Run) -> DataSet:
        """Return that of a run that trains."""
        loader = run.train_loader
        assert loader is not None
        names = "\n".join(loader.classes).encode(errors="surrogateescape")
        return cls(
            loader.num_images,
            hashlib.sha256(names).hexdigest(),
            loader.steps_per_epoch,
            run.config.batch.global_batch,
        )

    @classmethod
    def saved(cls, meta: Mapping[str, Any], present: DataSet) -> DataSet:
        """Return that of a checkpoint; what an older one does not say counts as unchanged."""
        known = meta.get("data_set", {})
        return cls(
            known.get("train_images", present.train_images),
            known.get("classes", present.classes),
            meta["steps_per_epoch"],
            meta["config"].get("batch.global", present.global_batch),
        )

    def changes_to(self, other: DataSet) -> list[str]:
        """Say in words what differs; the global batch is a setting and named with those."""
        changes = []
        if self.train_images != other.train_images:
            changes.append(f"{self.train_images} train images -> {other.train_images}")
        if self.classes != other.classes:
            changes.append("other class names")
        same_batch = self.global_batch == other.global_batch
        if not changes and same_batch and self.steps_per_epoch != other.steps_per_epoch:
            changes.append(f"{self.steps_per_epoch} steps an epoch -> {other.steps_per_epoch}")
        return changes

    def same_order(self, other: DataSet) -> bool:
        """Return whether a step number stands for the same samples in both."""
        mine, theirs = ((d.train_images, d.steps_per_epoch, d.global_batch) for d in (self, other))
        return mine == theirs


def with_defaults(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved settings and, of those in ``mine`` that did not exist then, the defaults.

    A new setting's default is what was done before there was one.
    """
    defaults = {}
    for name in mine:
        default = KEYS[name].default
        if KEYS[name].has_default:
            defaults[name] = list(default) if isinstance(default, tuple) else default
    return {**defaults, **saved}


def setting_changes(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Return ``key old -> new`` of every value that differs; both by ``section.key``."""
    return [
        f"{key} {saved.get(key)!r} -> {mine.get(key)!r}"
        for key in sorted({*saved, *mine})
        if saved.get(key) != mine.get(key)
    ]


def check_changes(
    changes: list[str], saved: Mapping[str, Any], mine: Mapping[str, Any], allow: bool, where: str
) -> None:
    """Refuse changes that were not allowed, or that no permission makes possible.

    Raises:
        CheckpointError: naming every value that differs.
    """
    if not changes:
        return
    listed = "; ".join(changes)
    fixed = [key for key in _FIXED if saved.get(key) != mine.get(key)]
    if fixed:
        raise CheckpointError(
            f"{where} is of another network ({listed}): {', '.join(fixed)} cannot change, since "
            "its weights do not fit; train anew in another --workspace"
        )
    if not allow:
        raise CheckpointError(
            f"{where} is of a run with other settings ({listed}): start it with the same names and "
            "options, train anew in another --workspace, or continue with --allow-changes"
        )


def check_clock(before: DataSet, now: DataSet, in_own_folder: bool, where: str) -> None:
    """Refuse to go on counting otherwise in a folder whose checkpoints count the old way.

    Raises:
        CheckpointError: an epoch has other steps than in this folder's checkpoints.
    """
    if in_own_folder and not before.same_order(now):
        raise CheckpointError(
            f"an epoch has other steps than in {where}, so this folder's steps cannot go on: give "
            f"--resume {where} --allow-changes and another --workspace"
        )


def epoch_start(step: int, before: DataSet, now: DataSet) -> int:
    """Return the first step of the epoch ``step`` is in, as ``now`` counts."""
    return step // before.steps_per_epoch * now.steps_per_epoch


def keeps_optimizer(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Return whether the optimizer's state has the same tensors under both settings."""

    def kind(settings: Mapping[str, Any]) -> tuple[Any, bool]:
        return settings.get("optim.name"), bool(settings.get("optim.momentum"))

    return kind(saved) == kind(mine)
