"""The run's folder: created, checked, and locked by one run at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from image_classification.config.schema import RunConfig, RunNames
from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.core.files import explained
from image_classification.engine.checkpoints import files

# A folder with any of these holds a run.
_RUN_FILES = ("config.yml", "report.json", "metrics.jsonl", "checkpoints")
# One block: an empty file can be created on a full disk.
_PROBE_BYTES = 65536


def default_workspace(names: RunNames, now: datetime | None = None) -> Path:
    """Return ``runs/<names>-<UTC time>``."""
    time = (now or datetime.now(timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
    parts = (names.model, names.platform, names.precision, names.recipe, names.mode)
    return Path("runs") / "-".join([*(p for p in parts if p), time])


def prepare_workspace(config: RunConfig, restarted: bool = False) -> Path:
    """Create the run's folder and check that it is writable and holds no other run.

    Returns its path. A folder that holds a run is accepted where a training run is resumed, or
    when the processes of this run have been ``restarted``.

    Raises:
        WorkspaceError: unwritable, full, or taken by another run. ConfigError: ``resume`` is
            ``auto`` and no folder is named.
    """
    given = config.run.workspace
    if given is None and config.run.resume == "auto":
        # A new folder has nothing to continue, and the run would silently start anew.
        raise ConfigError("--resume auto needs --workspace, the folder of the run to continue")
    path = Path(given) if given is not None else _first_free(default_workspace(config.names))
    with explained(path, "make the run's folder"):
        existed = path.exists()
        path.mkdir(parents=True, exist_ok=True)
    continuing = restarted or (config.run.resume is not None and config.run.mode == "convergence")
    with explained(path, "look into the run's folder"):
        taken = [name for name in _RUN_FILES if (path / name).exists()]
    if taken and not continuing:
        raise WorkspaceError(
            f"{path} holds another run ({', '.join(taken)}): continue it with --resume auto, or "
            "give another --workspace"
        )
    probe = path / f".probe-{os.getpid()}"
    try:
        with explained(path, "write to the run's folder"):
            probe.write_bytes(b"\0" * _PROBE_BYTES)
    except WorkspaceError:
        probe.unlink(missing_ok=True)
        if not existed:
            path.rmdir()
        raise
    probe.unlink(missing_ok=True)
    return path


def _first_free(path: Path) -> Path:
    # Two runs of one name started within one second each get their own folder.
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the folder for this run; the kernel releases the lock when the process ends.

    Removes what a killed run left incomplete among the checkpoints.

    Raises:
        WorkspaceError: another running process holds the lock.
    """
    with explained(path / ".lock", "open"):
        lock = open(path / ".lock", "a+")  # noqa: SIM115 - held for the run's life
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise WorkspaceError(
                f"{path} is in use by a running job ({holder}): wait for it, or give another "
                "--workspace"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
        lock.flush()
        with explained(path / "checkpoints", "tidy up"):
            files.clean_up(path / "checkpoints")
        yield
    finally:
        lock.close()
