"""What an elastic restart changes: the same folder, the newest checkpoint, the same end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.launch.outcomes import (
    RESTART_REASON,
    recall,
    remember,
    started_by_us,
)
from image_classification.launch.workspace import prepare_workspace


@dataclass(frozen=True)
class Footing:
    """Where a run stands at its start, by rank 0's word.

    resume: as `RunControl.resume`. counted_from: the step ``run_epochs`` counts from, None for
    the one this start begins at.
    """

    workspace: str
    resume: str | None
    counted_from: int | None


def check_restarts(config: RunConfig, environ: Mapping[str, str]) -> None:
    """Refuse, in a process that another launcher started, what a restart could not keep.

    Raises:
        ConfigError: restarts that are the launcher's to make, or that would lose the run's
            folder or its end.
    """
    if started_by_us():
        return
    if config.run.max_restarts > 0:
        raise ConfigError(
            "run.max_restarts is for processes that this program starts itself, and these were "
            "started by another launcher: give the restarts to that one (torchrun --max-restarts)"
        )
    if int(environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return
    if config.run.workspace is None:
        raise ConfigError(
            "torchrun --max-restarts needs --workspace: started again, the run continues from "
            "the checkpoints of its own folder"
        )
    if config.run.run_epochs is not None:
        raise ConfigError(
            "run.run_epochs counts from each start and torchrun --max-restarts starts again: "
            "give run.stop_epoch instead"
        )


def find_footing(config: RunConfig, count: int) -> Footing:
    """Make or find the run's folder and say where to go on; for rank 0 alone.

    count: restarts so far. A restarted training continues from its own folder's newest
    checkpoint; where there is none yet, it begins as it was first told to.

    Raises:
        WorkspaceError, ConfigError: see `prepare_workspace`.
    """
    control = config.run
    if count > 0 and (remembered := recall("workspace")) is not None:
        control = replace(control, workspace=remembered)
    workspace = prepare_workspace(replace(config, run=control), restarted=count > 0)
    remember("workspace", str(workspace))
    resume = control.resume
    begun: str | None = None
    if count > 0 and control.mode == "convergence":
        begun = recall("start_step")
        if resume is None or checkpoint.listed(workspace / "checkpoints"):
            resume = "auto"
    return Footing(str(workspace), resume, int(begun) if begun is not None else None)


def restart_warning(count: int) -> str:
    """Return what the records say of restart number ``count``."""
    reason = os.environ.get(RESTART_REASON)
    most = os.environ.get("TORCHELASTIC_MAX_RESTARTS")
    if reason is not None:
        return reason
    return f"started again by the elastic agent (restart {count} of at most {most})"


def on_footing(config: RunConfig, footing: Footing, count: int) -> RunConfig:
    """Return ``config`` in its folder, continuing where it is to."""
    control = replace(config.run, workspace=footing.workspace, resume=footing.resume)
    warnings = (*config.warnings, restart_warning(count)) if count > 0 else config.warnings
    return replace(config, run=control, warnings=warnings)


def made_by_us(config: RunConfig) -> bool:
    """Return whether the run's folder is not there yet, so that this start makes it."""
    given = config.run.workspace
    return given is None or not os.path.lexists(Path(given))
