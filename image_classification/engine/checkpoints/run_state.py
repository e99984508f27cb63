"""An optimizer's state by parameter name, as checkpoints hold it.

Between a run and its checkpoints: what goes in, what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from image_classification.config.explain import to_dict
from image_classification.config.schema import RunConfig
from image_classification.core.errors import CheckpointError, ConfigError
from image_classification.data.loaders.protocol import DECODING
from image_classification.devices.async_readback import HostCopy
from image_classification.engine.build import Run
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.checkpoints.resume_checks import (
    DataSet,
    check_changes,
    check_clock,
    epoch_start,
    keeps_optimizer,
    other_decoding,
    setting_changes,
    with_defaults,
)
from image_classification.engine.train_state import Progress
from image_classification.models.spec import Preprocessing
from image_classification.models.weights import load_state, model_metadata


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Flatten the optimizer's state by parameter name: tensors, and the numbers beside them."""
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
    """Undo `optimizer_tensors`, in the parameters' own device and memory layout.

    Raises:
        CheckpointError: the state is not this model's.
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


# What may differ between a run and its continuation: how it is driven and on what, never what
# is learnt. Everything else in the configuration must be equal.
_FREE = {
    "data": {
        "path",
        "workers",
        "prefetch",
        "backend",
        "format",
        "hw_decoder_load",
        "device_memory_padding_mib",
    },
    "batch": {"per_device", "accumulation"},
    "model": {"pretrained_from_file", "compile"},
}
_FREE_SECTIONS = {"run", "platform"}
_BOUND_RUN_KEYS = {"seed"}


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """Return the configuration values a continuation must share, by ``section.key``."""
    bound: dict[str, Any] = {}
    for section, values in to_dict(config).items():
        for key, value in values.items():
            if section in _FREE_SECTIONS and key not in _BOUND_RUN_KEYS:
                continue
            if key in _FREE.get(section, ()):
                continue
            bound[f"{section}.{key}"] = value
    return bound


@dataclass(frozen=True)
class Capture:
    """What a checkpoint of one step is to hold, on its way to the host.

    The tensors are copies, so that training may go on. Each can be taken once: what is then on the
    host is the only one.
    """

    model: HostCopy
    state: HostCopy
    model_header: Mapping[str, str]
    meta: Mapping[str, Any]

    @property
    def staged(self) -> bool:
        """Whether the device had memory for the copies; where not, training waited for them."""
        return self.model.staged and self.state.staged

    def on_host(self) -> checkpoint.Snapshot:
        """Wait for the copies and return them; any thread may, once."""
        return checkpoint.Snapshot(
            model=self.model.take(),
            model_header=self.model_header,
            state=self.state.take(),
            meta=self.meta,
        )


def capture(run: Run) -> Capture:
    """Copy what a checkpoint of the present step holds."""
    parts, config = run.parts, run.config
    assert parts is not None
    tensors, numbers = optimizer_tensors(parts.model, parts.optimizer)
    state = dict(tensors)
    if parts.ema is not None:
        state |= {f"ema.{name}": t for name, t in parts.ema.state_dict().items()}
    meta = {
        "progress": run.progress.to_json(),
        "data_set": vars(DataSet.of(run)) if run.train_loader else {},
        "steps_per_epoch": run.train_loader.steps_per_epoch if run.train_loader else None,
        "optimizer_numbers": numbers,
        "scaler": parts.amp.state_dict(),
        "config": fingerprint(config),
        "names": vars(config.names),
        "world_size": run.world.world_size,
    }
    return Capture(
        model=HostCopy(parts.model.state_dict()),
        state=HostCopy(state),
        model_header=model_header(config),
        meta=meta,
    )


def model_header(config: RunConfig) -> dict[str, str]:
    """Return the safetensors header that lets the file rebuild its model."""
    m = config.model
    return model_metadata(
        m.name,
        m.num_classes,
        se_reduction=m.se_reduction,
        preprocessing=Preprocessing.of(config.data),
        decoding=DECODING[config.data.backend],
    )


@dataclass(frozen=True)
class Restored:
    """What `restore` found: the checkpoint's path (None: nothing to continue) and warnings."""

    path: str | None
    warnings: list[str]


def restore(run: Run) -> Restored:
    """Continue from ``run.resume``: weights, optimizer, average, loss scale, progress.

    Raises:
        CheckpointError: missing, damaged, or of a run with other settings.
    """
    target = run.config.run.resume
    parts = run.parts
    assert target is not None and parts is not None
    saved, warnings = checkpoint.find(target, run.checkpoints)
    if saved is None:
        return Restored(None, warnings)
    content = checkpoint.load(saved.path)
    where, ours = str(saved.path), fingerprint(run.config)
    theirs = with_defaults(content.meta["config"], ours)
    now = DataSet.of(run)
    before = DataSet.saved(content.meta, now)
    changes = setting_changes(theirs, ours) + before.changes_to(now)
    check_changes(changes, theirs, ours, run.config.run.allow_changes, where)
    in_own_folder = saved.path.resolve().parent == run.checkpoints.resolve()
    check_clock(before, now, in_own_folder, where)
    if changes:
        warnings.append(f"continued from {where} under other settings: {'; '.join(changes)}")
    warnings += other_decoding(checkpoint.weights_of(saved.path), run.config.data)
    load_state(parts.model, content.model, where=str(saved.path))
    if keeps_optimizer(theirs, ours):
        parts.optimizer.state.clear()
        restore_optimizer(
            parts.model, parts.optimizer, content.state, content.meta["optimizer_numbers"]
        )
    else:
        warnings.append("the optimizer starts anew: its state is of another kind")
    averaged = {k.removeprefix("ema."): v for k, v in content.state.items() if k.startswith("ema.")}
    if parts.ema is not None:
        if not averaged:
            warnings.append("the moving average starts at the checkpoint's weights")
        parts.ema.load_state_dict(averaged or parts.model.state_dict())
    # A scale that was chosen anew is not overruled by the checkpoint's.
    anew = ("precision.loss_scale ", "precision.amp_backend ")
    if content.meta["scaler"] and not any(c.startswith(anew) for c in changes):
        parts.amp.load_state_dict(content.meta["scaler"])
    run.progress = Progress.from_json(content.meta["progress"])
    if before.changes_to(now):
        # What was validated on other data says nothing of this.
        run.progress.forget_best()
    if not before.same_order(now):
        warnings.append(_count_anew(run.progress, before, now))
    elif theirs.get("run.seed") != ours["run.seed"] and run.progress.step % now.steps_per_epoch:
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
    return Restored(str(saved.path), warnings)


def _count_anew(progress: Progress, before: DataSet, now: DataSet) -> str:
    """Put ``progress`` at the start of its epoch, as ``now`` counts; say so."""
    epoch, again = divmod(progress.step, before.steps_per_epoch)
    progress.step = epoch_start(progress.step, before, now)
    progress.closed_step = min(epoch_start(progress.closed_step, before, now), progress.step)
    if progress.best_step is not None:
        progress.best_step = epoch_start(progress.best_step, before, now)
    repeated = f"; the {again} steps taken of it before are repeated" if again else ""
    return (
        f"an epoch has {now.steps_per_epoch} steps of {now.global_batch} images, not "
        f"{before.steps_per_epoch} of {before.global_batch}: continuing at the start of epoch "
        f"{epoch} (from 0), which is step {progress.step} now{repeated}"
    )


def restore_weights(run: Run) -> Restored:
    """Load weights (and their moving average) only, for evaluation.

    Raises:
        CheckpointError: missing or damaged, or weights of another model.
    """
    target = run.config.run.resume
    parts = run.parts
    assert parts is not None
    if target is None:
        return Restored(None, [])
    if target == "auto":
        raise ConfigError(
            "--resume auto continues a training run; to evaluate, give --resume the run's folder "
            "or a checkpoint's"
        )
    saved, warnings = checkpoint.find(target, run.checkpoints)
    assert saved is not None  # only "auto" may find nothing
    content = checkpoint.load(saved.path)
    load_state(parts.model, content.model, where=str(saved.path))
    averaged = {k.removeprefix("ema."): v for k, v in content.state.items() if k.startswith("ema.")}
    if averaged and parts.ema is not None:
        parts.ema.load_state_dict(averaged)
    elif averaged:
        warnings.append("the checkpoint's moving average is not evaluated: give --use-ema DECAY")
    elif parts.ema is not None:
        raise CheckpointError(
            f"{saved.path} holds no moving average: leave --use-ema out to evaluate its weights"
        )
    run.progress = Progress.from_json(content.meta["progress"])
    return Restored(str(saved.path), warnings)
