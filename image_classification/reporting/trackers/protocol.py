"""What a tracker is: the run it is told of, and what it does with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """One open run of a tracker; any method may raise anything."""

    def start(self, values: Mapping[str, Any]) -> None:
        """Take the ``start`` record's values: sizes, device, the step the run goes on from."""
        ...

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add one point to each named curve; ``step`` counts optimizer steps."""
        ...

    def close(self, *, finished: bool) -> None:
        """Write what is left; ``finished``: the run came to its own end."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows when it opens.

    name: the run's name in the tracker. folder: the tracker's own, within the run's.
    parameters: the resolved configuration as ``section.key`` -> value. resumed: continue what
    ``folder`` holds.
    """

    name: str
    folder: Path
    parameters: Mapping[str, Any]
    resumed: bool
