"""One class per experiment tracker; each package is an optional extra, imported by ``load``.

``load`` raises whatever the import does. Any other method may raise any exception of its package.
"""

from __future__ import annotations

import logging
import netrc
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from image_classification.core.files import write_atomically
from image_classification.core.units import finite

PROJECT = "image-classification"


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker records.

    name: the run's name in the tracker. folder: the tracker's folder within the run's.
    parameters: the resolved configuration as ``section.key`` -> value. resumed: continue the
    tracker's earlier run in ``folder``, if there is one.
    """

    name: str
    folder: Path
    parameters: Mapping[str, Any]
    resumed: bool

    def saved_id(self) -> str | None:
        """Return the tracker's id of the run to continue, or None for a new one."""
        path = self.folder / "run-id"
        return path.read_text().strip() if self.resumed and path.exists() else None

    def save_id(self, run_id: str) -> None:
        """Save the tracker's id of the run, so that a resumed run continues it."""
        write_atomically(self.folder / "run-id", run_id + "\n")


class TensorBoardTracker:
    """Event files in ``trackers/tensorboard``, one per start of the run."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._writer = self.load()(str(run.folder))

    @staticmethod
    def load() -> Any:
        """Import SummaryWriter."""
        import tensorboard  # noqa: F401 (otherwise torch reports a missing one as outdated)
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter

    def start(self, values: Mapping[str, Any]) -> None:
        """Write the configuration as text; make TensorBoard drop steps that are repeated."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start_step = values.get("start_step") or 0
        if self._run.resumed:
            # As SummaryWriter's purge_step, which has to be known before the file is opened.
            restart = Event(session_log=SessionLog(status=SessionLog.START))
            self._writer.file_writer.add_event(restart, start_step + 1)
        table = ["| setting | value |", "|---|---|"]
        for name, value in {**self._run.parameters, **values}.items():
            cell = str(finite(value)).replace("|", "\\|").replace("\n", " ")
            table.append(f"| {name} | {cell} |")
        self._writer.add_text("run", "\n".join(table), start_step)
        self._writer.flush()

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures as scalars at ``step``, to disk."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """Close the file; the format does not say whether a run has finished."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, offline in ``trackers/wandb`` unless the user has logged in."""

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
            mode=wandb_mode(os.environ),
            config=finite(run.parameters),
            settings=settings,
        )
        # wandb's own step cannot decrease, as it does where a resumed run repeats steps.
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("inference/*", step_metric="batch")
        run.save_id(run_id)

    @staticmethod
    def load() -> Any:
        """Import wandb."""
        if wandb_mode(os.environ) != "online":
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


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return ``WANDB_MODE`` if set, ``online`` if the user has logged in, else ``offline``.

    Logged in means ``WANDB_API_KEY`` or an entry of the server in the netrc file, where
    ``wandb login`` saves it.
    """
    if environ.get("WANDB_MODE"):
        return environ["WANDB_MODE"]
    if environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        hosts = netrc.netrc(Path(environ.get("NETRC") or "~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if host in hosts else "offline"


class MlflowTracker:
    """A run in MLflow's server of ``MLFLOW_TRACKING_URI``, or in ``trackers/mlflow/mlflow.db``.

    It uses MLflow's client, which changes no global state.
    """

    def __init__(self, run: TrackedRun) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client, self._metric, self._param = self.load()
        folder = run.folder.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = client(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        self._parameters = run.parameters
        saved_id = run.saved_id()
        self._continued = saved_id is not None
        if saved_id is not None:
            self._run_id = saved_id
            self._client.update_run(saved_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        if found := self._client.get_experiment_by_name(name):
            experiment_id = found.experiment_id
        else:
            artifacts = None if uri else folder.as_uri()
            experiment_id = self._client.create_experiment(name, artifact_location=artifacts)
        created = self._client.create_run(str(experiment_id), run_name=run.name)
        self._run_id = str(created.info.run_id)
        run.save_id(self._run_id)

    @staticmethod
    def load() -> tuple[Any, Any, Any]:
        """Import MlflowClient, Metric and Param."""
        # Otherwise it sends usage statistics over the network.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        return MlflowClient, Metric, Param

    def start(self, values: Mapping[str, Any]) -> None:
        """Log configuration, sizes and device of a new run; they cannot be changed later."""
        if self._continued:
            return
        # The server takes at most 100 parameters per call, of at most 500 characters.
        params = [
            self._param(name, str(finite(value))[:500])
            for name, value in {**self._parameters, **values}.items()
        ]
        for i in range(0, len(params), 100):
            self._client.log_batch(self._run_id, params=params[i : i + 100])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log the figures as metrics at ``step``."""
        now_ms = time.time_ns() // 1_000_000
        metrics = [self._metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """End the run: finished, or killed until it is resumed."""
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")


TRACKERS: dict[str, type[TensorBoardTracker | WandbTracker | MlflowTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
