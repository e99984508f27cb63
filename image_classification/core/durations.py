"""Intervals with units: ``"3 steps"``, ``"10 minutes"``, ``"1 epochs"``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from image_classification.core.errors import ConfigError

_UNITS = {"step": "steps", "minute": "minutes", "min": "minutes", "epoch": "epochs"}


@dataclass(frozen=True)
class Every:
    """How often something happens; unit is ``steps``, ``minutes`` or ``epochs``."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Every:
        """Read ``"N steps"``, ``"N minutes"`` or ``"N epochs"`` (N >= 1, singular allowed).

        Raises:
            ConfigError: anything else.
        """
        match = re.fullmatch(r"\s*(\d+)\s*([a-z]+?)s?\s*", text)
        if not match or match[2] not in _UNITS or int(match[1]) < 1:
            raise ConfigError(
                f"cannot read interval {text!r}: write 'N steps', 'N minutes' or 'N epochs', N >= 1"
            )
        return cls(int(match[1]), _UNITS[match[2]])

    def due(self, step: int, elapsed_s: float) -> bool:
        """Return whether it is time after ``step``, ``elapsed_s`` seconds since the last time."""
        if self.unit == "steps":
            return step % self.count == 0
        return self.unit == "minutes" and elapsed_s >= 60 * self.count

    def due_epoch(self, epochs_done: int) -> bool:
        """Return whether it is time at the end of an epoch (units other than epochs: always)."""
        return self.unit != "epochs" or epochs_done % self.count == 0
