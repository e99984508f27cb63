"""TensorBoard: event files in ``trackers/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_classification.core.units import finite
from image_classification.reporting.trackers.sink import TrackedRun


class TensorBoardTracker:
    """One event file per start of the run, all in the same folder."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._writer = self.load()(str(run.folder))

    @staticmethod
    def load() -> Any:
        """Import SummaryWriter; raises whatever the import does."""
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
        rows = {**self._run.parameters, **values}
        table = ["| setting | value |", "|---|---|"]
        table += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
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


def _cell(value: Any) -> str:
    return str(finite(value)).replace("|", "\\|").replace("\n", " ")
