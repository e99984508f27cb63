"""Collectives on tensors, flags and texts. In a world of one, each returns at once."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from image_classification.distributed.world import control_group


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of ``tensor`` over all ranks, on its device; integer sums are exact.

    The input is unchanged (and returned in a world of one).
    """
    control = control_group()
    if control is None:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total, group=control if total.device.type == "cpu" else None)
    return total


def agree_max(flag: int) -> int:
    """Return the maximum of all ranks' ``flag``, so that all take the same branch."""
    control = control_group()
    if control is None:
        return flag
    value = torch.tensor(flag, dtype=torch.int64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=control)
    return int(value)


def barrier() -> None:
    """Wait until every rank calls this; queued device work may still run."""
    control = control_group()
    if control is not None:
        dist.barrier(group=control)


@torch.no_grad()
def broadcast_module_state(module: nn.Module) -> None:
    """Copy rank 0's parameters and persistent buffers to every rank, in place.

    One collective per dtype, instead of one for each of hundreds of small BN buffers.
    """
    control = control_group()
    if control is None:
        return
    by_dtype: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in module.state_dict().values():
        by_dtype.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for (_, device), tensors in by_dtype.items():
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.broadcast(flat, src=0, group=control if device.type == "cpu" else None)
        parts = torch.split(flat, [t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def broadcast_text(text: str) -> str:
    """Return rank 0's ``text`` on every rank."""
    return gather_text(text if control_group() is None or dist.get_rank() == 0 else "")[0]


def gather_text(text: str) -> list[str]:
    """Return every rank's ``text``, by rank. No pickles: ranks may be on other machines."""
    control = control_group()
    if control is None:
        return [text]
    # The line end keeps the tensor from being empty.
    encoded = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)
    lengths = [torch.tensor([0]) for _ in range(dist.get_world_size(control))]
    dist.all_gather(lengths, torch.tensor([len(encoded)]), group=control)
    padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
    padded[: len(encoded)] = encoded
    gathered = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded, group=control)
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

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self.finish()

    def __call__(self, flag: bool) -> bool:
        """Send this rank's ``flag``; return whether any rank's was set in the call before."""
        control = control_group()
        if control is None:
            return flag
        answer = self.finish()
        value = torch.tensor(int(flag), dtype=torch.int64)
        work = dist.all_reduce(value, op=dist.ReduceOp.MAX, group=control, async_op=True)
        self._pending = (work, value)
        return answer

    def finish(self) -> bool:
        """Wait for the pending reduction and return its answer; no pending one: False."""
        if self._pending is None:
            return False
        work, value = self._pending
        self._pending = None
        work.wait()
        return bool(value.item())
