"""Weights & Biases: offline in ``trackers/wandb`` unless the user has logged in."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from image_classification.core.units import finite
from image_classification.reporting.trackers.sink import TrackedRun

PROJECT = "image-classification"
_SERVER = "https://api.wandb.ai"


def chosen_mode(environ: Mapping[str, str]) -> str:
    """Return ``WANDB_MODE`` if set, ``online`` if the user has logged in, else ``offline``.

    Logged in means ``WANDB_API_KEY`` or an entry of the server in the netrc file, where
    ``wandb login`` saves it.
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


class WandbTracker:
    """One run of Weights & Biases."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = self.load()
        run_id = run.saved_id() or uuid4().hex[:12]
        # Its console capture and messages would disturb the live view.
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, init_timeout=50
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run_id,
            resume="allow",
            dir=str(run.folder.parent),  # wandb appends its own name
            mode=chosen_mode(os.environ),
            config=finite(run.parameters),
            settings=settings,
        )
        # wandb's own step cannot decrease, as it does where a resumed run repeats steps.
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("inference/*", step_metric="batch")
        run.save_id(run_id)

    @staticmethod
    def load() -> Any:
        """Import wandb; raises whatever the import does."""
        if chosen_mode(os.environ) != "online":
            # Otherwise it sends crash reports even when offline.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Without the package, a folder named wandb is imported as an empty one.
        if not hasattr(wandb, "init"):
            raise ImportError("a folder named wandb is imported instead of the package")
        return wandb

    def start(self, values: Mapping[str, Any]) -> None:
        """Add sizes and device to the run's configuration."""
        self._run.config.update(finite(values), allow_val_change=True)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log the figures over ``step`` (inference: over ``batch``)."""
        axis = "batch" if any(name.startswith("inference/") for name in figures) else "step"
        self._run.log({axis: step, **figures})

    def close(self, *, finished: bool) -> None:
        """End the run; a stopped run counts as failed until it is resumed."""
        self._run.finish(exit_code=0 if finished else 1)
