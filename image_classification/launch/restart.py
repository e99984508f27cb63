"""Where a start of a run continues: its folder, its checkpoint, and how a restart changes both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError
from image_classification.engine.checkpoints import files
from image_classification.launch.outcomes import (
    RESTART_REASON,
    keep_for_restart,
    kept_for_restart,
    started_by_us,
)
from image_classification.launch.workspace import prepare_workspace


@dataclass(frozen=True)
class ResumePoint:
    """Where a start of a run continues, as rank 0 found it.

    resume: as `RunControl.resume`. run_epochs_from: the step ``run_epochs`` counts from; None: the
    one this start begins at.
    """

    workspace: str
    resume: str | None
    run_epochs_from: int | None


def check_restarts(config: RunConfig, environ: Mapping[str, str]) -> None:
    """Refuse settings that the restarts of another launcher would break.

    Raises:
        ConfigError: restarts that the launcher must make, or that would lose the run's folder or
            its end.
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


def find_resume_point(config: RunConfig, restart_count: int) -> ResumePoint:
    """Create or find the run's folder and where to continue; for rank 0 alone.

    A restarted training continues from its own folder's newest checkpoint; without one yet, it
    begins as the first start did.

    Raises:
        WorkspaceError, ConfigError: see `prepare_workspace`.
    """
    control, restarted = config.run, restart_count > 0
    folder = kept_for_restart("workspace") if restarted else None
    if folder is not None:
        control = replace(control, workspace=folder)
    workspace = prepare_workspace(replace(config, run=control), restarted)
    keep_for_restart("workspace", str(workspace))
    resume, start_step = control.resume, None
    if restarted and control.mode == "convergence":
        start_step = kept_for_restart("start_step")
        if resume is None or files.listed(workspace / "checkpoints"):
            resume = "auto"
    return ResumePoint(str(workspace), resume, None if start_step is None else int(start_step))


def apply_resume_point(config: RunConfig, point: ResumePoint, restart_count: int) -> RunConfig:
    """Return ``config`` with its folder and checkpoint, and a warning after a restart."""
    control = replace(config.run, workspace=point.workspace, resume=point.resume)
    warnings = config.warnings
    if restart_count > 0:
        limit = os.environ.get("TORCHELASTIC_MAX_RESTARTS")
        default = f"started again by the elastic agent (restart {restart_count} of at most {limit})"
        warnings = (*warnings, os.environ.get(RESTART_REASON, default))
    return replace(config, run=control, warnings=warnings)
