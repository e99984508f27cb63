"""What may differ between a checkpoint and the run that continues or evaluates it.

Interpolation, antialiasing and decoder alone have moved published top-1 by up to 1.5 points
(NVIDIA/DALI#422), so weights remember how the images of their training were made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from image_classification.config.keys import KEYS, to_dict
from image_classification.config.schema import DataConfig, RunConfig
from image_classification.core.errors import CheckpointError
from image_classification.data.loaders import DECODING
from image_classification.engine.runs import TrainingRun
from image_classification.models.spec import Preprocessing
from image_classification.models.weights import read_header

# Settings that may differ: how a run is started and on what, never what it learns.
_FREE_SECTIONS = {"run", "platform"}
_FREE_KEYS = {
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.backend",
    "data.format",
    "data.hw_decoder_load",
    "data.device_memory_padding_mib",
    "batch.per_device",
    "batch.accumulation",
    "model.pretrained_from_file",
    "model.compile",
}
_BOUND_KEYS = {"run.seed"}

# With another value of these the weights do not fit, even with run.allow_changes.
_FIXED = ("model.name", "model.num_classes", "model.se_reduction")


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """Return the settings a continued run must share, by ``section.key``."""
    return {
        f"{section}.{key}": value
        for section, values in to_dict(config).items()
        for key, value in values.items()
        if f"{section}.{key}" in _BOUND_KEYS
        or (section not in _FREE_SECTIONS and f"{section}.{key}" not in _FREE_KEYS)
    }


def with_defaults(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved settings, and the defaults of settings that are newer than them.

    A new setting's default is the behavior from before the setting existed.
    """
    defaults = {}
    for name in current:
        default = KEYS[name].default
        if KEYS[name].has_default:
            defaults[name] = list(default) if isinstance(default, tuple) else default
    return {**defaults, **saved}


def setting_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return ``key old -> new`` of every setting that differs."""
    return [
        f"{key} {saved.get(key)!r} -> {current.get(key)!r}"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]


def check_changes(
    changes: list[str],
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    allow: bool,
    where: str,
) -> None:
    """Refuse changes that were not allowed (``allow``) or are impossible.

    Raises:
        CheckpointError: naming every setting that differs.
    """
    if not changes:
        return
    listed = "; ".join(changes)
    fixed = [key for key in _FIXED if saved.get(key) != current.get(key)]
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


def keeps_optimizer(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return whether the optimizer's state has the same tensors under both settings."""

    def kind(settings: Mapping[str, Any]) -> tuple[Any, bool]:
        return settings.get("optim.name"), bool(settings.get("optim.momentum"))

    return kind(saved) == kind(current)


@dataclass(frozen=True)
class DataSet:
    """What the sample order and the labels of a training set depend on.

    classes: sha256 of the class names, in the order of their labels.
    """

    train_images: int
    classes: str
    steps_per_epoch: int
    global_batch: int

    @classmethod
    def of(cls, run: TrainingRun) -> DataSet:
        """Return the data set of a training run."""
        loader = run.train_loader
        names = "\n".join(loader.classes).encode(errors="surrogateescape")
        return cls(
            loader.num_images,
            hashlib.sha256(names).hexdigest(),
            loader.steps_per_epoch,
            run.config.batch.global_batch,
        )

    @classmethod
    def saved(cls, meta: Mapping[str, Any], current: DataSet) -> DataSet:
        """Return a checkpoint's data set; what an older release did not save is ``current``'s."""
        known = meta.get("data_set", {})
        return cls(
            known.get("train_images", current.train_images),
            known.get("classes", current.classes),
            meta["steps_per_epoch"],
            meta["config"].get("batch.global", current.global_batch),
        )

    def changes_to(self, other: DataSet) -> list[str]:
        """Return the differences in words; a changed global batch is among the settings."""
        changes = []
        if self.train_images != other.train_images:
            changes.append(f"{self.train_images} train images -> {other.train_images}")
        if self.classes != other.classes:
            changes.append("other class names")
        same_batch = self.global_batch == other.global_batch
        if not changes and same_batch and self.steps_per_epoch != other.steps_per_epoch:
            changes.append(f"{self.steps_per_epoch} steps per epoch -> {other.steps_per_epoch}")
        return changes

    def same_order(self, other: DataSet) -> bool:
        """Return whether a step number means the same samples in both."""
        mine, others = ((d.train_images, d.steps_per_epoch, d.global_batch) for d in (self, other))
        return mine == others

    def first_step_of_epoch(self, step: int, other: DataSet) -> int:
        """Return the first step of the epoch that ``step`` is in, as ``other`` counts steps."""
        return step // self.steps_per_epoch * other.steps_per_epoch


def check_step_count(saved: DataSet, current: DataSet, in_own_folder: bool, where: str) -> None:
    """Refuse to count steps differently in a folder that already has checkpoints.

    Raises:
        CheckpointError: an epoch has other steps than in this folder's checkpoints.
    """
    if in_own_folder and not saved.same_order(current):
        raise CheckpointError(
            f"an epoch has other steps than in {where}, so this folder's steps cannot go on: give "
            f"--resume {where} --allow-changes and another --workspace"
        )


def preprocessing_warnings(weights: Path, data: DataConfig) -> list[str]:
    """Return how ``data`` makes images differently from those ``weights`` was validated on."""
    try:
        header = read_header(weights)
    except CheckpointError:  # no metadata, which is allowed: the weights have been loaded already
        return [
            f"{weights} does not say how the images of its training were resized and decoded: "
            f"check data.resize, data.interpolation and data.antialias against its source"
        ]
    saved, current = asdict(header.preprocessing), asdict(Preprocessing.of(data))
    differing = [key for key in current if saved[key] != current[key]]
    if not differing:
        return decoding_warnings(weights, data)
    listed = ", ".join(f"{key} {saved[key]} -> {current[key]}" for key in differing)
    remedy = " ".join(f"--set data.{key}={_as_option(saved[key])}" for key in differing)
    return [
        f"{weights} was validated on images made differently ({listed}), so its top-1 may differ: "
        f"{remedy} evaluates it as before",
        *decoding_warnings(weights, data),
    ]


def decoding_warnings(weights: Path, data: DataConfig) -> list[str]:
    """Return a warning where ``data.backend`` gives other pixels than in ``weights``' training."""
    saved = read_header(weights).decoding
    current = DECODING[data.backend]
    if saved is None or saved == current:
        return []
    same = [name for name, decoding in DECODING.items() if decoding == saved]
    remedy = f": --data-backend {' or '.join(same)} gives the same ones" if same else ""
    return [
        f"{weights} was trained on images decoded by {saved.decoder} and scaled by "
        f"{saved.resampler}; {data.backend} uses {current.decoder} and {current.resampler}, "
        f"whose pixels differ slightly{remedy}"
    ]


def _as_option(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value)
