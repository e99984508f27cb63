"""Small device values on their way to the host, without making the step wait for them."""

from __future__ import annotations

import torch


class Readback:
    """A copy of ``tensor`` on the host, under way from now on.

    tensor: any shape and dtype; it may be changed afterwards in the same stream. On a GPU the copy
    is queued behind the work already there; elsewhere it is made at once.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._ready: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            # Only a copy into pinned memory leaves the host free; torch caches such blocks.
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()  # type: ignore[no-untyped-call]
        else:
            self._host = tensor.detach().to("cpu", copy=True)

    def wait(self) -> torch.Tensor:
        """Return the copy once it is there."""
        if self._ready is not None:
            self._ready.synchronize()
            self._ready = None
        return self._host
