"""Between a run and its checkpoints: what goes in, what comes back, what must agree."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from image_classification.config.schema import RunConfig
from image_classification.config.serialise import to_dict
from image_classification.core.errors import CheckpointError, ConfigError, DivergedError
from image_classification.core.types import Record
from image_classification.data.backend import DECODING
from image_classification.engine import checkpoint
from image_classification.engine.build import Run
from image_classification.engine.contract import other_decoding
from image_classification.engine.state import Progress
from image_classification.hardware.world import agree_max, barrier, broadcast_module_state
from image_classification.models.spec import Preprocessing
from image_classification.models.weights import load_state, model_metadata

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


def check_same_run(saved: Mapping[str, Any], config: RunConfig, where: str) -> None:
    """Refuse to continue a run under a configuration that would learn something else.

    Raises:
        CheckpointError: naming every value that differs.
    """
    mine = fingerprint(config)
    differing = [
        f"{key} {saved.get(key)!r} -> {mine.get(key)!r}"
        for key in sorted({*saved, *mine})
        if saved.get(key) != mine.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{where} is of a run with other settings ({'; '.join(differing)}): start it with the "
            "same names and options, or train anew in another --workspace"
        )


def snapshot(run: Run) -> checkpoint.Snapshot:
    """Collect what a checkpoint of the present step holds."""
    parts, config = run.parts, run.config
    assert parts is not None
    tensors, numbers = checkpoint.optimizer_tensors(parts.model, parts.optimizer)
    state = dict(tensors)
    if parts.ema is not None:
        state |= {f"ema.{name}": t for name, t in parts.ema.state_dict().items()}
    meta = {
        "progress": run.progress.to_json(),
        "steps_per_epoch": run.train_loader.steps_per_epoch if run.train_loader else None,
        "optimizer_numbers": numbers,
        "scaler": parts.scaler.state_dict(),
        "config": fingerprint(config),
        "names": vars(config.names),
        "world_size": run.world.world_size,
    }
    return checkpoint.Snapshot(
        model=parts.model.state_dict(), model_header=model_header(config), state=state, meta=meta
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


def save(run: Run, top1: float | None = None) -> Record:
    """Save the present step from rank 0; every rank calls this.

    top1 is given when the present weights are the best validated so far.

    Raises:
        WorkspaceError: it could not be written (earlier checkpoints are intact).
        DivergedError: the weights are not finite; nothing is written.
    """
    parts = run.parts
    assert parts is not None
    started = time.perf_counter()
    broadcast_module_state(parts.model)
    bad = not all(
        bool(torch.isfinite(t).all())
        for t in parts.model.state_dict().values()
        if t.is_floating_point()
    )
    if agree_max(int(bad)):
        raise DivergedError(
            f"weights are not finite at step {run.progress.step}", step=run.progress.step
        )
    values: dict[str, Any] = {"is_best": top1 is not None}
    if run.world.rank == 0:
        saved = checkpoint.save(
            run.checkpoints,
            run.progress.step,
            snapshot(run),
            prefix=run.config.run.checkpoint_name,
        )
        if top1 is not None:
            checkpoint.note_best(run.checkpoints, saved, top1)
        best = checkpoint.best_step(run.checkpoints)
        checkpoint.rotate(
            run.checkpoints, run.config.run.keep_checkpoints, () if best is None else (best,)
        )
        values["path"] = str(saved.path)
        values["bytes"] = sum(f.stat().st_size for f in saved.path.iterdir())
    barrier()
    values["time_s"] = time.perf_counter() - started
    return Record("checkpoint", run.progress.step, _epoch(run), values)


def _epoch(run: Run) -> int:
    steps = run.train_loader.steps_per_epoch if run.train_loader else 0
    return max(0, (run.progress.step - 1) // steps) if steps else 0


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
    check_same_run(content.meta["config"], run.config, str(saved.path))
    steps_per_epoch = run.train_loader.steps_per_epoch if run.train_loader else None
    if content.meta["steps_per_epoch"] != steps_per_epoch:
        raise CheckpointError(
            f"{saved.path} is of a run with {content.meta['steps_per_epoch']} steps an epoch, this "
            f"one has {steps_per_epoch}: the data set has changed; train anew in another folder"
        )
    warnings += other_decoding(checkpoint.weights_of(saved.path), run.config.data)
    load_state(parts.model, content.model, where=str(saved.path))
    parts.optimizer.state.clear()
    checkpoint.restore_optimizer(
        parts.model, parts.optimizer, content.state, content.meta["optimizer_numbers"]
    )
    if parts.ema is not None:
        parts.ema.load_state_dict(
            {k.removeprefix("ema."): v for k, v in content.state.items() if k.startswith("ema.")}
        )
    parts.scaler.load_state_dict(content.meta["scaler"])
    run.progress = Progress.from_json(content.meta["progress"])
    if content.meta["world_size"] != run.world.world_size:
        warnings.append(
            f"resumed on {run.world.world_size} processes a run saved on "
            f"{content.meta['world_size']}: global batch and sample order are unchanged, "
            "batch statistics and rounding are not"
        )
    return Restored(str(saved.path), warnings)


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
