"""Copy a run's state into a checkpoint, and restore it from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from image_classification.config.schema import RunConfig
from image_classification.core.errors import CheckpointError, ConfigError
from image_classification.data.loaders import DECODING
from image_classification.devices.async_readback import HostCopy
from image_classification.engine.checkpoints import files
from image_classification.engine.checkpoints.resume_checks import (
    DataSet,
    check_changes,
    check_step_count,
    decoding_warnings,
    fingerprint,
    keeps_optimizer,
    setting_changes,
    with_defaults,
)
from image_classification.engine.runs import EvaluationRun, Progress, TrainingRun
from image_classification.models.spec import Preprocessing
from image_classification.models.weights import load_state, model_metadata


@dataclass(frozen=True)
class PendingSnapshot:
    """Copies of a run's state that are still being transferred to the host.

    Training may go on at once. Each copy can be taken once.
    """

    model: HostCopy
    state: HostCopy
    model_header: Mapping[str, str]
    meta: Mapping[str, Any]

    @property
    def staged(self) -> bool:
        """Whether the device had memory for the copies; where not, training waited for them."""
        return self.model.staged and self.state.staged

    def on_host(self) -> files.Snapshot:
        """Wait for the copies and return them; from any thread, once."""
        return files.Snapshot(
            model=self.model.take(),
            model_header=self.model_header,
            state=self.state.take(),
            meta=self.meta,
        )


def capture(run: TrainingRun) -> PendingSnapshot:
    """Copy everything that a checkpoint of the current step holds."""
    parts, config = run.parts, run.config
    state, numbers = optimizer_state(parts.model, parts.optimizer)
    if parts.ema is not None:
        state |= {f"ema.{name}": t for name, t in parts.ema.state_dict().items()}
    meta = {
        # A shallow copy: `starts` grows only when a run starts.
        "progress": dict(vars(run.progress)),
        "data_set": vars(DataSet.of(run)),
        "steps_per_epoch": run.steps_per_epoch,
        "optimizer_numbers": numbers,
        "scaler": parts.amp.state_dict(),
        "config": fingerprint(config),
        "names": vars(config.names),
        "world_size": run.world.world_size,
    }
    return PendingSnapshot(
        model=HostCopy(parts.model.state_dict()),
        state=HostCopy(state),
        model_header=model_header(config),
        meta=meta,
    )


def model_header(config: RunConfig) -> dict[str, str]:
    """Return the safetensors header from which the file's model can be rebuilt."""
    m = config.model
    return model_metadata(
        m.name,
        m.num_classes,
        se_reduction=m.se_reduction,
        preprocessing=Preprocessing.of(config.data),
        decoding=DECODING[config.data.backend],
    )


def optimizer_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the optimizer's state by parameter name: its tensors, and its numbers."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optim.{name}.{key}"] = value
            elif value is not None:
                numbers[f"optim.{name}.{key}"] = value
    return tensors, numbers


def restore_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Load what `optimizer_state` returned, on the parameters' device and in their memory layout.

    Raises:
        CheckpointError: the state is of another model.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in [*tensors.items(), *numbers.items()]:
        if not full_name.startswith("optim."):
            continue
        name, _, key = full_name.removeprefix("optim.").rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state of an unknown {name!r}")
        parameter = parameters[name]
        # Counters (0-d) stay on the host, where torch's non-capturable optimizers want them.
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            # empty_like keeps channels_last strides: fused kernels want matching layouts.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = value


@dataclass(frozen=True)
class Restored:
    """path: of the checkpoint that was restored; None: there was nothing to restore."""

    path: str | None
    warnings: list[str]


def restore(run: TrainingRun) -> Restored:
    """Continue from ``run.resume``: weights, optimizer, moving average, loss scale, progress.

    Raises:
        CheckpointError: missing, damaged, or of a run with other settings.
    """
    parts = run.parts
    saved, warnings = files.find(str(run.config.run.resume), run.checkpoints)
    if saved is None:
        return Restored(None, warnings)
    content = files.load(saved.path)
    where = str(saved.path)

    settings = fingerprint(run.config)
    saved_settings = with_defaults(content.meta["config"], settings)
    data_set = DataSet.of(run)
    saved_data_set = DataSet.saved(content.meta, data_set)
    data_changes = saved_data_set.changes_to(data_set)
    changes = setting_changes(saved_settings, settings) + data_changes
    check_changes(changes, saved_settings, settings, run.config.run.allow_changes, where)
    in_own_folder = saved.path.resolve().parent == run.checkpoints.resolve()
    check_step_count(saved_data_set, data_set, in_own_folder, where)
    if changes:
        warnings.append(f"continued from {where} under other settings: {'; '.join(changes)}")
    warnings += decoding_warnings(files.weights_file(saved.path), run.config.data)

    load_state(parts.model, content.model, where=where)
    if keeps_optimizer(saved_settings, settings):
        parts.optimizer.state.clear()
        restore_optimizer(
            parts.model, parts.optimizer, content.state, content.meta["optimizer_numbers"]
        )
    else:
        warnings.append("the optimizer starts anew: its state is of another kind")
    average = _average_in(content)
    if parts.ema is not None:
        if not average:
            warnings.append("the moving average starts at the checkpoint's weights")
        parts.ema.load_state_dict(average or parts.model.state_dict())
    # A loss scale or backend that was changed is not overruled by the checkpoint's state.
    scaling_changed = any(
        change.startswith(("precision.loss_scale ", "precision.amp_backend ")) for change in changes
    )
    if content.meta["scaler"] and not scaling_changed:
        parts.amp.load_state_dict(content.meta["scaler"])

    run.progress = Progress(**content.meta["progress"])
    if data_changes:
        run.progress.forget_best()
    if not saved_data_set.same_order(data_set):
        warnings.append(_restart_epoch(run.progress, saved_data_set, data_set))
    elif (
        saved_settings.get("run.seed") != settings["run.seed"]
        and run.progress.step % data_set.steps_per_epoch
    ):
        warnings.append(
            "the rest of this epoch comes in the new seed's order: some of its images were already "
            "seen in it, others will not be"
        )
    run.progress.note_start(run.world.world_size, where, changes)
    if content.meta["world_size"] != run.world.world_size:
        warnings.append(
            f"resumed on {run.world.world_size} processes a run saved on "
            f"{content.meta['world_size']}: global batch and sample order are unchanged, "
            "batch statistics and rounding are not"
        )
    return Restored(where, warnings)


def _restart_epoch(progress: Progress, saved: DataSet, current: DataSet) -> str:
    """Move ``progress`` to the start of its epoch, in ``current``'s steps; return a warning."""
    epoch, repeated_steps = divmod(progress.step, saved.steps_per_epoch)
    progress.step = saved.first_step_of_epoch(progress.step, current)
    closed_step = saved.first_step_of_epoch(progress.closed_step, current)
    progress.closed_step = min(closed_step, progress.step)
    if progress.best_step is not None:
        progress.best_step = saved.first_step_of_epoch(progress.best_step, current)
    repeated = f"; its first {repeated_steps} steps are repeated" if repeated_steps else ""
    return (
        f"an epoch has {current.steps_per_epoch} steps of {current.global_batch} images, not "
        f"{saved.steps_per_epoch} of {saved.global_batch}: continuing at the start of epoch "
        f"{epoch} (from 0), which is step {progress.step} now{repeated}"
    )


def restore_weights(run: EvaluationRun) -> Restored:
    """Load the weights (and their moving average) of ``run.resume``, if set, for evaluation.

    Raises:
        CheckpointError: missing or damaged, or weights of another model.
    """
    target, parts = run.config.run.resume, run.parts
    if target is None:
        return Restored(None, [])
    saved, warnings = None, list[str]()
    if target != "auto":
        saved, warnings = files.find(target, run.checkpoints)
    if saved is None:
        raise ConfigError(
            "--resume auto continues a training run; to evaluate, give --resume the run's folder "
            "or a checkpoint's"
        )
    content = files.load(saved.path)
    load_state(parts.model, content.model, where=str(saved.path))
    average = _average_in(content)
    if average and parts.ema is not None:
        parts.ema.load_state_dict(average)
    elif average:
        warnings.append("the checkpoint's moving average is not evaluated: give --use-ema DECAY")
    elif parts.ema is not None:
        raise CheckpointError(
            f"{saved.path} holds no moving average: leave --use-ema out to evaluate its weights"
        )
    run.progress = Progress(**content.meta["progress"])
    return Restored(str(saved.path), warnings)


def _average_in(content: files.Snapshot) -> dict[str, torch.Tensor]:
    return {k.removeprefix("ema."): v for k, v in content.state.items() if k.startswith("ema.")}
