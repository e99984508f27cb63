"""MLflow: the server ``MLFLOW_TRACKING_URI`` names, else a database in ``trackers/mlflow``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from image_classification.core.files import write_atomically
from image_classification.core.units import finite
from image_classification.reporting.trackers.protocol import TrackedRun

EXPERIMENT = "image-classification"
_PARAMS_A_CALL = 100
_PARAM_LENGTH = 500


def load() -> tuple[Any, Any, Any]:
    """Import MlflowClient, Metric and Param; raises whatever the import does."""
    # Its usage statistics would go over the network unasked.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    return MlflowClient, Metric, Param


def open_tracker(run: TrackedRun) -> MlflowTracker:
    """Begin a run, or continue the one whose id the folder holds.

    Raises:
        OSError, WorkspaceError: the folder cannot be written. Whatever mlflow raises.
    """
    return MlflowTracker(run)


class MlflowTracker:
    """One run of MLflow, through its client: nothing global is set."""

    def __init__(self, run: TrackedRun) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client, self._metric, self._param = load()
        folder = run.folder.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = client(tracking_uri=uri)
        self._parameters: dict[str, Any] = dict(run.parameters)
        kept = run.folder / "run-id"
        self._continued = run.resumed and kept.exists()
        if self._continued:
            self._run_id: str = kept.read_text().strip()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        begun = self._client.create_run(self._experiment(folder.as_uri()), run_name=run.name)
        self._run_id = begun.info.run_id
        write_atomically(kept, self._run_id + "\n")

    def start(self, values: Mapping[str, Any]) -> None:
        """Log configuration, sizes and device; a continued run has them, for good."""
        if self._continued:
            return
        params = [
            self._param(name, str(finite(value))[:_PARAM_LENGTH])
            for name, value in {**self._parameters, **values}.items()
        ]
        for first in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self._run_id, params=params[first : first + _PARAMS_A_CALL])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log the figures as metrics at ``step``."""
        now_ms = time.time_ns() // 1_000_000
        metrics = [self._metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """End the run: finished, or killed until it is continued."""
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")

    def _experiment(self, artifacts: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else artifacts
        return str(self._client.create_experiment(name, artifact_location=local))
