"""The state that makes a resumed run equal to one never stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where the run is. ``step`` counts attempted optimizer updates and is the only clock.

    Epoch, learning rate, sample order, augmentation, mixing and the framework's random numbers
    are functions of (seed, step), so nothing else is needed to continue. ``closed_step`` is the
    last step whose epoch was validated and recorded: a run stopped between an epoch's last step
    and its validation validates first when resumed. ``skipped`` counts fp16 overflows.
    ``elapsed_s`` is wall time over all starts, as far as they were saved, and ``best_elapsed_s``
    what it was at the best validation (null: not known). ``starts`` has one entry a start:
    ``step``, ``world_size``, ``resumed_from`` (null: from nothing) and ``changes``, the settings
    that were changed.
    """

    step: int = 0
    closed_step: int = 0
    best_top1: float | None = None
    best_step: int | None = None
    validations_without_gain: int = 0
    skipped: int = 0
    elapsed_s: float = 0.0
    best_elapsed_s: float | None = None
    starts: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``state.json``."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """Rebuild from ``state.json``.

        Raises:
            TypeError: the keys are not this release's.
        """
        return cls(**values)

    def note_validation(self, top1: float) -> bool:
        """Record a validation at the present step; True when it is the best so far."""
        self.closed_step = self.step
        if self.best_top1 is None or top1 > self.best_top1:
            self.best_top1, self.best_step = top1, self.step
            self.best_elapsed_s = self.elapsed_s
            self.validations_without_gain = 0
            return True
        self.validations_without_gain += 1
        return False

    def note_start(self, world_size: int, resumed_from: str | None, changes: list[str]) -> None:
        """Record that the run goes on from the present step in this world."""
        self.starts.append(
            {
                "step": self.step,
                "world_size": world_size,
                "resumed_from": resumed_from,
                "changes": changes,
            }
        )

    def forget_best(self) -> None:
        """Count validations anew."""
        self.best_top1 = self.best_step = self.best_elapsed_s = None
        self.validations_without_gain = 0
