"""Copies of device tensors that travel to the host beside the device's other work.

Small device values on their way to the host, without making the step wait for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class HostCopy:
    """Tensors as they are at one point of the device's work, on their way to the host.

    Making one queues a copy on the tensors' own device, so what follows may change the originals
    at once. `take` brings the copy to the host and may be called from another thread, once.
    In between, the device holds a second copy of the tensors.

    staged: False where the device had no memory for that copy. The tensors were then brought to
    the host at once, and the device's other work waited for it.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy ``tensors`` (any shapes and dtypes, on the host and at most one device)."""
        self._device = next((t.device for t in tensors.values() if t.device.type != "cpu"), None)
        self._ready: Any = None
        self.staged = True
        try:
            self._tensors = {name: _clone(t) for name, t in tensors.items()}
        except torch.OutOfMemoryError:
            self._tensors = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
            self.staged = False
            return
        if self._device is not None:
            device_module = torch.get_device_module(self._device)
            self._ready = device_module.Event()
            self._ready.record(device_module.current_stream(self._device))

    def take(self) -> dict[str, torch.Tensor]:
        """Wait for the copies and return them on the host, in the originals' memory layout."""
        tensors, self._tensors = self._tensors, {}
        if self._ready is None:
            return tensors
        # A stream of its own: the copy to the host then runs beside the training's kernels. Only
        # from pinned memory does it; torch keeps and reuses what was pinned.
        device_module = torch.get_device_module(self._device)
        with device_module.device(self._device):
            stream = device_module.Stream()
            stream.wait_event(self._ready)
            with device_module.stream(stream):
                on_host = {name: _to_pinned(t) for name, t in tensors.items()}
            # The device's copies may be freed only after this.
            stream.synchronize()
        return on_host


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


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
