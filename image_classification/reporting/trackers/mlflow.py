"""MLflow: the server of ``MLFLOW_TRACKING_URI``, or a database in ``trackers/mlflow``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from image_classification.core.units import finite
from image_classification.reporting.trackers.sink import TrackedRun

EXPERIMENT = "image-classification"
_MAX_PARAMS_PER_CALL = 100
_MAX_PARAM_CHARS = 500


class MlflowTracker:
    """One run of MLflow, through its client, which changes no global state."""

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
        artifacts = None if uri else folder.as_uri()
        created = self._client.create_run(self._experiment_id(artifacts), run_name=run.name)
        self._run_id = str(created.info.run_id)
        run.save_id(self._run_id)

    @staticmethod
    def load() -> tuple[Any, Any, Any]:
        """Import MlflowClient, Metric and Param; raises whatever the import does."""
        # Otherwise it sends usage statistics over the network.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        return MlflowClient, Metric, Param

    def start(self, values: Mapping[str, Any]) -> None:
        """Log configuration, sizes and device of a new run; they cannot be changed later."""
        if self._continued:
            return
        params = [
            self._param(name, str(finite(value))[:_MAX_PARAM_CHARS])
            for name, value in {**self._parameters, **values}.items()
        ]
        for i in range(0, len(params), _MAX_PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=params[i : i + _MAX_PARAMS_PER_CALL])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log the figures as metrics at ``step``."""
        now_ms = time.time_ns() // 1_000_000
        metrics = [self._metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """End the run: finished, or killed until it is resumed."""
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")

    def _experiment_id(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts))
