"""Asynchronous copies of device tensors to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class HostCopy:
    """A snapshot of tensors that is copied to the host while the device continues.

    Construction queues a copy on the tensors' device, so the originals may change afterwards.
    `take` copies it to the host; it may be called once, from any thread. In between, the device
    holds both copies.

    staged: False if the device had no memory for the copy. The tensors were then copied to the
    host at once, and the device's other work waited for it.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy ``tensors`` (any shapes and dtypes, on the host and at most one device)."""
        self._device = next((t.device for t in tensors.values() if t.device.type != "cpu"), None)
        self._ready: Any = None
        self.staged = True
        try:
            self._tensors = {name: t.detach().clone() for name, t in tensors.items()}
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
        # A separate stream and pinned memory, so that the copy overlaps the training's kernels.
        # Torch caches pinned memory.
        device_module = torch.get_device_module(self._device)
        with device_module.device(self._device):
            stream = device_module.Stream()
            stream.wait_event(self._ready)
            with device_module.stream(stream):
                on_host = {name: _to_pinned(t) for name, t in tensors.items()}
            # The device's copies must not be freed earlier.
            stream.synchronize()
        return on_host


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy into pinned memory, the only kind of copy that does not block the host."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class Readback:
    """A copy of one small tensor to the host, started at construction.

    tensor: any shape and dtype; may be changed afterwards in the same stream. On a GPU, the copy is
    queued behind the work already there; elsewhere it is made at once.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._ready: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = _to_pinned(tensor.detach())
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()  # type: ignore[no-untyped-call]
        else:
            self._host = tensor.detach().to("cpu", copy=True)

    def ready(self) -> bool:
        """Return whether `wait` would return at once."""
        return self._ready is None or bool(self._ready.query())  # type: ignore[no-untyped-call]

    def wait(self) -> torch.Tensor:
        """Return the copy when it is complete."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._host
