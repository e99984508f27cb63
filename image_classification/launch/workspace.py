"""Create, check and lock the run's folder, and find the checkpoint to continue from."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.core.files import explained
from image_classification.engine.checkpoints import files
from image_classification.launch.outcomes import (
    RESTART_REASON,
    keep_for_restart,
    kept_for_restart,
    started_by_us,
)

# A folder with any of these holds a run.
_RUN_FILES = ("config.yml", "report.json", "metrics.jsonl", "checkpoints")


def prepare_workspace(config: RunConfig, restarted: bool = False) -> Path:
    """Create the run's folder and check that it is writable and holds no other run.

    Returns its path, by default ``runs/<names>-<UTC time>``. A folder that holds a run is accepted
    where a training run is resumed, or when the processes of this run have been ``restarted``.

    Raises:
        WorkspaceError: unwritable, full, or taken by another run. ConfigError: ``resume`` is
            ``auto`` and no folder is named.
    """
    given, resume = config.run.workspace, config.run.resume
    if given is None and resume == "auto":
        # A new folder has nothing to continue, and the run would silently start from scratch.
        raise ConfigError("--resume auto needs --workspace, the folder of the run to continue")
    path = _default_workspace(config) if given is None else Path(given)
    with explained(path, "create the run's folder"):
        existed = path.exists()
        path.mkdir(parents=True, exist_ok=True)
    continuing = restarted or (resume is not None and config.run.mode == "convergence")
    with explained(path, "read the run's folder"):
        taken = [name for name in _RUN_FILES if (path / name).exists()]
    if taken and not continuing:
        raise WorkspaceError(
            f"{path} holds another run ({', '.join(taken)}): continue it with --resume auto, or "
            "give another --workspace"
        )
    probe = path / f".probe-{os.getpid()}"
    try:
        with explained(path, "write to the run's folder"):
            # One block, as an empty file can be created on a full disk.
            probe.write_bytes(b"\0" * 65536)
    except WorkspaceError:
        probe.unlink(missing_ok=True)
        if not existed:
            path.rmdir()
        raise
    probe.unlink(missing_ok=True)
    return path


def _default_workspace(config: RunConfig) -> Path:
    time = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    names = config.names
    parts = (names.model, names.platform, names.precision, names.recipe, names.mode, time)
    path = first = Path("runs") / "-".join(part for part in parts if part)
    n = 1
    while path.exists():  # two runs of one name may start within one second
        n += 1
        path = first.with_name(f"{first.name}-{n}")
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the folder for this run; the kernel releases the lock when the process ends.

    Removes what a killed run left incomplete among the checkpoints.

    Raises:
        WorkspaceError: another running process holds the lock.
    """
    with explained(path / ".lock", "open"):
        lock = open(path / ".lock", "a+")  # noqa: SIM115 - held for the run's life
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise WorkspaceError(
                f"{path} is in use by a running job ({holder}): wait for it, or give another "
                "--workspace"
            ) from None
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
        lock.flush()
        with explained(path / "checkpoints", "clean up"):
            files.clean_up(path / "checkpoints")
        yield


@dataclass(frozen=True)
class ResumePoint:
    """Where a start of a run continues, as rank 0 found it.

    resume: as `RunControl.resume`. run_epochs_from: the step ``run_epochs`` counts from; None: the
    one this start begins at.
    """

    workspace: str
    resume: str | None
    run_epochs_from: int | None


def find_resume_point(config: RunConfig, restart_count: int) -> ResumePoint:
    """Create or find the run's folder and where to continue; for rank 0 alone.

    A restarted training continues from its own folder's newest checkpoint; without one yet, it
    begins as the first start did. Raises as `prepare_workspace`.
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
        if point.resume == "auto":  # the newest one, not where the first start began
            control = replace(control, checkpoint=None)
        limit = os.environ.get("TORCHELASTIC_MAX_RESTARTS")
        default = f"started again by the elastic agent (restart {restart_count} of at most {limit})"
        warnings = (*warnings, os.environ.get(RESTART_REASON, default))
    return replace(config, run=control, warnings=warnings)


def check_restarts(config: RunConfig, environ: Mapping[str, str]) -> None:
    """Raise ConfigError for settings that the restarts of another launcher would break."""
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
