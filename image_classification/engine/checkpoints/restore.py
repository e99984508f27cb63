"""Restore a run's state from a checkpoint, and check the differences between the two.

Interpolation, antialiasing and decoder alone have moved published top-1 by up to 1.5 points
(NVIDIA/DALI#422), so a checkpoint records how its training images were made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from image_classification.config.keys import KEYS, to_dict
from image_classification.config.schema import DataConfig, RunConfig
from image_classification.core.errors import CheckpointError, ConfigError
from image_classification.data.loaders import DECODING, Loader
from image_classification.distributed.collectives import agree_max
from image_classification.engine.checkpoints import files
from image_classification.engine.runs import (
    EvaluationRun,
    Progress,
    Run,
    TrainingRun,
    WeightsSource,
)
from image_classification.models import Preprocessing
from image_classification.models.weights import load_state, read_classes, read_header

# Settings that may differ: they decide how and on what hardware a run executes, not its result.
_FREE_SECTIONS = {"run", "platform"}
_FREE_KEYS = {
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.backend",
    "data.format",
    "data.split_file",
    "data.hw_decoder_load",
    "data.device_memory_padding_mib",
    "batch.per_device",
    "batch.accumulation",
    "batch.fit_memory",
    "model.pretrained_from_file",
    "model.compile",
}
_BOUND_KEYS = {"run.seed"}

# With another value of these the weights do not fit, even with run.allow_changes.
_FIXED = ("model.name", "model.num_classes", "model.se_reduction")


def bound_settings(config: RunConfig) -> dict[str, Any]:
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
    defaults = {name: KEYS[name].default for name in current if KEYS[name].has_default}
    listed = {key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items()}
    return {**listed, **saved}


def setting_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return ``key old -> new`` of every setting that differs."""
    return [
        f"{key} {saved.get(key)!r} -> {current.get(key)!r}"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]


def _digest(classes: Sequence[str]) -> str:
    names = "\n".join(classes).encode(errors="surrogateescape")
    return hashlib.sha256(names).hexdigest()


@dataclass(frozen=True)
class DataSet:
    """What the sample order and the labels of a training set depend on.

    classes: sha256 of the class names in the order of their labels.
    """

    train_images: int
    classes: str
    steps_per_epoch: int
    global_batch: int

    @classmethod
    def of(cls, run: TrainingRun) -> DataSet:
        """Return the data set of a training run."""
        loader = run.train_loader
        global_batch = run.config.batch.global_batch
        digest = _digest(loader.classes)
        return cls(loader.num_images, digest, loader.steps_per_epoch, global_batch)

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
        """Return the differences in words, without the global batch, which is a setting."""
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


def find_resumed(run: Run) -> WeightsSource | None:
    """Return the checkpoint that a training run continues from; None: it starts anew.

    Raises:
        CheckpointError: missing or damaged.
    """
    target = run.config.run.resume
    return None if target is None else _find(run, target, "last")


def find_weights(run: Run) -> WeightsSource | None:
    """Return the weights that an evaluation or inference benchmark names; None: none.

    Raises:
        CheckpointError: missing or damaged. ConfigError: ``run.resume`` is ``auto``.
    """
    target, file = run.config.run.resume, run.config.model.pretrained_from_file
    if target is not None:
        source = None if target == "auto" else _find(run, target, "best")
        if source is None:
            raise ConfigError(
                "--resume auto continues a training run; to evaluate, give --resume the run's "
                "folder or a checkpoint's"
            )
        return source
    return None if file is None else WeightsSource(Path(file), classes=read_classes(file))


def _find(run: Run, target: str, default: str) -> WeightsSource | None:
    """Find the checkpoint of ``run.resume`` that ``run.checkpoint`` or ``default`` names."""
    chosen = run.config.run.checkpoint
    folder = files.checkpoint_folder(target, run.checkpoints)
    which, notes = chosen or default, []
    if folder is None and chosen is not None:
        raise ConfigError(
            f"--checkpoint {chosen} chooses among the checkpoints of a run, and {target} is one "
            "checkpoint: leave --checkpoint out, or name the run's folder"
        )
    has_best = folder is None or files.best_step(folder) is not None
    if chosen is None and which == "best" and not has_best:
        which = "last"
        notes = [
            f"{target} names no best checkpoint (none was validated, or the best is in the run "
            "that it continued): the last is used"
        ]
    path, warnings = files.find(target, run.checkpoints, which)
    if path is None:
        return None
    file, meta = files.weights_file(path), files.read_meta(path)
    classes = read_classes(file)
    try:
        step = meta["progress"]["step"]
        epoch = step / meta["steps_per_epoch"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"damaged checkpoint {path}: state.json has no {error}; use another one"
        ) from error
    if agree_max(step) != step or agree_max(-step) != -step:
        raise CheckpointError(
            f"the processes found different checkpoints in {target}, which is still saving: start "
            "again, or name one with --checkpoint STEP"
        )
    return WeightsSource(
        file,
        path,
        which if folder is not None and which in ("best", "last") else "step",
        step=step,
        epoch=epoch,
        classes=classes,
        warnings=(*notes, *warnings),
    )


def check_class_names(source: WeightsSource, loader: Loader, notes: list[str]) -> None:
    """Check the classes of an evaluation whose weights do not state theirs; add a note.

    Raises:
        CheckpointError: the checkpoint's hash of the class names is of others.
    """
    if source.classes is not None or loader.class_names is None:
        return
    where, digest = source.checkpoint or source.file, None
    if source.checkpoint is not None:
        digest = files.read_meta(source.checkpoint).get("data_set", {}).get("classes")
    if digest == _digest(loader.classes):
        return
    numbers = [f"{label:04d}" for label in range(len(loader.classes))]
    if digest not in (None, _digest(numbers)):
        raise CheckpointError(
            f"{where} was trained on other class names or in another order, and holds only their "
            "hash: give the data set that it was trained on"
        )
    notes.append(
        f"{where} does not name its classes: whether the data set has the same ones in the same "
        "order cannot be checked"
    )


def restore(run: TrainingRun) -> tuple[Path | None, list[str]]:
    """Continue from ``run.source``: weights, optimizer, moving average, loss scale, progress.

    Returns the checkpoint (None: nothing to continue) and warnings.

    Raises:
        CheckpointError: missing, damaged, or of a run with other settings.
    """
    parts, control = run.parts, run.config.run
    if control.resume is None or run.source is None or run.source.checkpoint is None:
        return None, []
    path, warnings = run.source.checkpoint, list(run.source.warnings)
    content = files.load(path)
    meta = content.meta

    settings = bound_settings(run.config)
    saved_settings = with_defaults(meta["config"], settings)
    data_set = DataSet.of(run)
    saved_data_set = DataSet.saved(meta, data_set)
    same_order = saved_data_set.same_order(data_set)
    data_changes = saved_data_set.changes_to(data_set)
    changes = setting_changes(saved_settings, settings) + data_changes
    if changes:
        _check_changes(changes, saved_settings, settings, control.allow_changes, path)
        warnings.append(f"continued from {path} under other settings: {'; '.join(changes)}")
    in_own_folder = path.resolve().parent == run.checkpoints.resolve()
    newest = files.listed(path.parent)[-1]
    if in_own_folder and run.source.which != "last" and newest.path.name != path.name:
        raise CheckpointError(
            f"{path} is not the newest checkpoint of its run ({newest.path.name} is): to continue "
            "from it, give another --workspace, or remove the newer ones"
        )
    if not same_order and in_own_folder:
        raise CheckpointError(
            f"the steps of an epoch differ from those of {path}, so this folder's steps cannot be "
            f"continued: give --resume {path} --allow-changes and another --workspace"
        )
    warnings += decoding_warnings(files.weights_file(path), run.config.data)

    load_state(parts.model, content.model, where=str(path))
    if _optimizer_kind(saved_settings) == _optimizer_kind(settings):
        parts.optimizer.state.clear()
        restore_optimizer(parts.model, parts.optimizer, content.state, meta["optimizer_numbers"])
    else:
        warnings.append("the optimizer starts without state: the checkpoint's is of another kind")
    average = _average_in(content)
    if parts.ema is not None:
        if not average:
            warnings.append("the moving average starts at the checkpoint's weights")
        parts.ema.load_state_dict(average or parts.model.state_dict())
    # If the loss scale or backend was changed, the checkpoint's scaler state is not restored.
    scaling_changed = any(
        change.startswith(("precision.loss_scale ", "precision.amp_backend ")) for change in changes
    )
    if meta["scaler"] and not scaling_changed:
        parts.amp.load_state_dict(meta["scaler"])

    progress = run.progress = Progress(**meta["progress"])
    if data_changes:
        # The best validation was measured on other data.
        progress.best_top1 = progress.best_step = progress.best_elapsed_s = None
        progress.last_top1 = progress.last_step = None
        progress.validations_without_gain = 0
    if not same_order:
        warnings.append(_restart_epoch(progress, saved_data_set, data_set))
    elif (
        saved_settings.get("run.seed") != settings["run.seed"]
        and progress.step % data_set.steps_per_epoch
    ):
        warnings.append(
            "the rest of this epoch uses the new seed's order: some images occur twice in "
            "this epoch, others not at all"
        )
    world_size = run.world.world_size
    progress.note_start(world_size, str(path), changes)
    if meta["world_size"] != world_size:
        warnings.append(
            f"resumed on {world_size} processes a run saved on {meta['world_size']}: global batch "
            "and sample order are unchanged, batch statistics and rounding are not"
        )
    return path, warnings


def _check_changes(
    changes: list[str],
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    allow: bool,
    path: Path,
) -> None:
    listed = "; ".join(changes)
    fixed = [key for key in _FIXED if saved.get(key) != current.get(key)]
    if fixed:
        raise CheckpointError(
            f"{path} is of another network ({listed}): {', '.join(fixed)} cannot change, since "
            "its weights do not fit; train from scratch in another --workspace"
        )
    if not allow:
        raise CheckpointError(
            f"{path} is of a run with other settings ({listed}): start it with the same names and "
            "options, train from scratch in another --workspace, or continue with --allow-changes"
        )


def _optimizer_kind(settings: Mapping[str, Any]) -> tuple[Any, bool]:
    # These settings decide which tensors the optimizer's state has.
    return settings.get("optim.name"), bool(settings.get("optim.momentum"))


def restore_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Load what `save.optimizer_state` returned, on the parameters' device and in their layout."""
    parameters = dict(model.named_parameters())
    for full_name, value in [*tensors.items(), *numbers.items()]:
        if not full_name.startswith("optim."):
            continue
        name, _, key = full_name.removeprefix("optim.").rpartition(".")
        if name not in parameters:
            raise CheckpointError(
                f"the checkpoint has optimizer state of an unknown {name!r}; use another one"
            )
        parameter = parameters[name]
        # Counters (0-d) stay on the host, where torch's non-capturable optimizers want them.
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            # empty_like keeps channels_last strides: fused kernels want matching layouts.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = value


def _restart_epoch(progress: Progress, saved: DataSet, current: DataSet) -> str:
    """Move ``progress`` to the start of its epoch, in ``current``'s steps; return a warning."""

    def epoch_start(step: int) -> int:
        return step // saved.steps_per_epoch * current.steps_per_epoch

    epoch, repeated_steps = divmod(progress.step, saved.steps_per_epoch)
    progress.step = epoch_start(progress.step)
    progress.closed_step = min(epoch_start(progress.closed_step), progress.step)
    if progress.best_step is not None:
        progress.best_step = epoch_start(progress.best_step)
    if progress.last_step is not None:
        progress.last_step = epoch_start(progress.last_step)
    repeated = f"; its first {repeated_steps} steps are repeated" if repeated_steps else ""
    return (
        f"an epoch has {current.steps_per_epoch} steps of {current.global_batch} images, not "
        f"{saved.steps_per_epoch} of {saved.global_batch}: continuing at the start of epoch "
        f"{epoch} (from 0), which is step {progress.step} now{repeated}"
    )


def restore_weights(run: EvaluationRun) -> tuple[Path | None, list[str]]:
    """Load the weights (and their moving average) of ``run.source``, if a checkpoint.

    Returns the checkpoint (None: a file, or no weights) and warnings.

    Raises:
        CheckpointError: damaged, or weights of another model.
    """
    parts = run.parts
    if run.source is None or run.source.checkpoint is None:
        return None, []
    path, warnings = run.source.checkpoint, list(run.source.warnings)
    content = files.load(path)
    load_state(parts.model, content.model, where=str(path))
    average = _average_in(content)
    if average and parts.ema is not None:
        parts.ema.load_state_dict(average)
    elif average:
        warnings.append("the checkpoint's moving average is not evaluated: give --use-ema DECAY")
    elif parts.ema is not None:
        raise CheckpointError(
            f"{path} holds no moving average: leave --use-ema out to evaluate its weights"
        )
    run.progress = Progress(**content.meta["progress"])
    return path, warnings


def _average_in(content: files.Snapshot) -> dict[str, torch.Tensor]:
    return {k.removeprefix("ema."): v for k, v in content.state.items() if k.startswith("ema.")}


def preprocessing_warnings(weights: Path, data: DataConfig) -> list[str]:
    """Return how ``data`` makes images differently from those ``weights`` was validated on."""
    try:
        header = read_header(weights)
    except CheckpointError:  # no metadata, which is allowed: the weights have been loaded already
        return [
            f"{weights} does not say how the images of its training were resized and decoded: "
            f"check data.resize, data.interpolation and data.antialias against its source"
        ]
    warnings = decoding_warnings(weights, data)
    saved, current = asdict(header.preprocessing), asdict(Preprocessing.of(data))
    differing = [key for key in current if saved[key] != current[key]]
    if differing:
        listed = ", ".join(f"{key} {saved[key]} -> {current[key]}" for key in differing)
        remedy = " ".join(f"--set data.{key}={_as_option(saved[key])}" for key in differing)
        warnings.insert(
            0,
            f"{weights} was validated on images made differently ({listed}), so its top-1 may "
            f"differ: {remedy} evaluates it as before",
        )
    return warnings


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
    if isinstance(value, tuple):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
