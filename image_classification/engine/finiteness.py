"""Whether training is still sound: non-finite losses and gradients, fp16 overflows in a row.

All ranks come to one verdict at one step without asking each other. Gradients are averaged over
ranks before they are looked at, so what is not finite on one rank is not finite on all; and
`poison` carries a non-finite loss into the gradients.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from image_classification.devices.async_readback import Readback


@dataclass(frozen=True)
class StepNote:
    """What is kept of a step until the host has seen its verdict.

    step: optimizer updates done before it. losses: of this rank's micro-batches, 0-d, on the
    device. scale: loss scale the step was taken with. verdict: ``[3]`` int64: 1 where the
    gradients are not finite; fp16 overflows so far; those of the present streak.
    """

    step: int
    epoch: int
    lr: float
    losses: tuple[torch.Tensor, ...]
    scale: torch.Tensor | None
    verdict: Readback


@dataclass(frozen=True)
class Trouble:
    """A step the run cannot go on from. overflows: in a row up to it; 0 where it is not fp16's."""

    note: StepNote
    overflows: int


def poison(scaled_loss: torch.Tensor) -> torch.Tensor:
    """Return what to start the backward pass with: 1, or NaN where the loss is not finite.

    scaled_loss: 0-d float. The gradients of a finite loss stay what they are, bit for bit.
    """
    return scaled_loss.detach() * 0 + 1


class Watch:
    """Notes each step's health on the device and reads it on the host when it costs no wait.

    On a GPU a step is read after the next one has been queued, so the device always has work; on
    a CPU at once. max_in_a_row: fp16 overflows in a row that are one too many.
    """

    def __init__(self, device: torch.device, max_in_a_row: int, skipped: int = 0) -> None:
        self.skipped = skipped
        """fp16 overflows so far, as of the last step read."""
        self._max_in_a_row = max_in_a_row
        self._behind = 1 if device.type == "cuda" else 0
        self._notes: deque[StepNote] = deque()
        self._sound = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.full((), skipped, dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def note(
        self,
        step: int,
        epoch: int,
        lr: float,
        losses: tuple[torch.Tensor, ...],
        grad_norm: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        overflow: torch.Tensor | None = None,
    ) -> None:
        """Note a step; see `StepNote`.

        grad_norm: 0-d, over all parameters and ranks; or, with a loss scaler, scale and overflow
        (0-d bool: the scaler discarded the update).
        """
        bad = self._sound
        if grad_norm is not None:
            bad = (~torch.isfinite(grad_norm)).to(torch.int64)
        if overflow is not None:
            self._skipped += overflow
            self._in_a_row.add_(1).mul_(overflow)
        verdict = Readback(torch.stack([bad, self._skipped, self._in_a_row]))
        self._notes.append(StepNote(step, epoch, lr, losses, scale, verdict))

    def trouble(self, all_steps: bool = False) -> Trouble | None:
        """Read what can be read without waiting; with all_steps, every step so far.

        Returns the first step the run cannot go on from, the same on every rank.
        """
        behind = 0 if all_steps else self._behind
        while len(self._notes) > behind:
            note = self._notes.popleft()
            bad, self.skipped, in_a_row = note.verdict.wait().tolist()
            if bad:
                return Trouble(note, 0)
            if in_a_row >= self._max_in_a_row:
                return Trouble(note, in_a_row)
        return None
