"""Texts and flags exchanged between ranks, over the host and without waiting for devices."""

from __future__ import annotations

from types import TracebackType

import torch
import torch.distributed as dist

from image_classification.distributed.world import control_group


def broadcast_text(text: str) -> str:
    """Return rank 0's ``text`` on every rank."""
    group = control_group()
    if group is None:
        return text
    encoded = text.encode()
    length = torch.tensor(len(encoded), dtype=torch.int64)
    dist.broadcast(length, src=0, group=group)
    content = torch.zeros(int(length), dtype=torch.uint8)
    if dist.get_rank() == 0:
        content.copy_(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
    dist.broadcast(content, src=0, group=group)
    return bytes(content.tolist()).decode()


def gather_text(text: str) -> list[str]:
    """Return every rank's ``text``, by rank."""
    group = control_group()
    if group is None:
        return [text]
    encoded = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)
    length = torch.tensor([len(encoded)], dtype=torch.int64)
    lengths = [torch.zeros_like(length) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, length, group=group)
    longest = max(int(length) for length in lengths)
    padded = torch.nn.functional.pad(encoded, (0, longest - len(encoded)))
    gathered = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded, group=group)
    return [
        bytes(content[: int(length) - 1].tolist()).decode()
        for content, length in zip(gathered, lengths, strict=True)
    ]


class AnyRank:
    """Return at each call whether any rank's flag was set, one call late so that no step waits.

    The reduction of call n runs during the step after it and is read in call n + 1; every rank
    gets the same answer at the same call. In a world of one the answer is immediate. As a context
    manager it waits for the last reduction at the end, except after an error: a lost rank would
    never complete it.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self) -> AnyRank:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()

    def __call__(self, flag: bool) -> bool:
        """Send this rank's ``flag``; return whether any rank's was set in the call before."""
        group = control_group()
        if group is None:
            return flag
        answer = False
        if self._pending is not None:
            work, value = self._pending
            work.wait()
            answer = bool(value.item())
        value = torch.tensor(int(flag), dtype=torch.int64)
        work = dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group, async_op=True)
        self._pending = (work, value)
        return answer

    def finish(self) -> None:
        """Wait for the pending reduction, so that none is left when the process group ends."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
