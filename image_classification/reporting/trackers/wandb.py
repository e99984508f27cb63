"""Weights & Biases: offline in ``trackers/wandb`` unless the user has logged in."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from image_classification.core.files import write_atomically
from image_classification.core.units import finite
from image_classification.reporting.trackers.protocol import TrackedRun

PROJECT = "image-classification"
_SERVER = "https://api.wandb.ai"


def load() -> Any:
    """Import wandb; raises whatever the import does."""
    if chosen_mode(os.environ) != "online":
        # Its crash reports would go over the network all the same.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Without the package, a folder called wandb imports as an empty one.
    if not hasattr(wandb, "init"):
        raise ImportError("a folder called wandb is in its place")
    return wandb


def chosen_mode(environ: Mapping[str, str]) -> str:
    """Return ``online`` where the user has logged in or says so, else ``offline``.

    Logged in means ``WANDB_API_KEY``, or the server's entry that ``wandb login`` leaves in the
    netrc file. ``WANDB_MODE`` goes before both.
    """
    if environ.get("WANDB_MODE"):
        return environ["WANDB_MODE"]
    if environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(environ.get("WANDB_BASE_URL") or _SERVER).hostname
    path = Path(environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if host in hosts else "offline"


def open_tracker(run: TrackedRun) -> WandbTracker:
    """Begin a run, or continue the one whose id the folder holds.

    Raises:
        OSError, WorkspaceError: the folder cannot be written. Whatever wandb raises.
    """
    return WandbTracker(run, chosen_mode(os.environ))


class WandbTracker:
    """One run of Weights & Biases."""

    def __init__(self, run: TrackedRun, mode: str) -> None:
        wandb = load()
        kept = run.folder / "run-id"
        known = run.resumed and kept.exists()
        run_id = kept.read_text().strip() if known else uuid4().hex[:12]
        # Without its own console capture and messages, which would tear the live view.
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, init_timeout=50
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run_id,
            resume="allow",
            dir=str(run.folder.parent),  # wandb adds its own name
            mode=mode,
            config=finite(run.parameters),
            settings=settings,
        )
        # wandb's own step must not go back, as it does where a resumed run repeats some.
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("inference/*", step_metric="batch")
        write_atomically(kept, run_id + "\n")

    def start(self, values: Mapping[str, Any]) -> None:
        """Add sizes and device to the run's configuration."""
        self._run.config.update(finite(values), allow_val_change=True)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log the figures against ``step`` (inference: against ``batch``)."""
        axis = "batch" if any(name.startswith("inference/") for name in figures) else "step"
        self._run.log({axis: step, **figures})

    def close(self, *, finished: bool) -> None:
        """End the run; one that was stopped counts as failed until it is continued."""
        self._run.finish(exit_code=0 if finished else 1)
