"""Batch arithmetic: accumulation = global / (per_device x world), in this one place."""

from __future__ import annotations

from image_classification.core.errors import ConfigError


def accumulation(global_batch: int, per_device_batch: int, world_size: int) -> int:
    """Return how many micro-batches a device adds up for one optimizer step.

    All batches count images; ``world_size`` counts devices.

    Raises:
        ConfigError: not a positive integer; the message has the arithmetic and the nearest
            per-device batch, global batch and device count that work.
    """
    micro = per_device_batch * world_size
    if global_batch % micro == 0:
        return global_batch // micro
    devices = "device" if world_size == 1 else "devices"
    raise ConfigError(
        f"a global batch of {global_batch} cannot be made of {per_device_batch} images on "
        f"{world_size} {devices}: {global_batch} / ({per_device_batch} x {world_size}) = "
        f"{global_batch / micro:.3g}, not a positive whole number; "
        f"these work: {'; '.join(_remedies(global_batch, per_device_batch, world_size))}"
    )


def formula(global_batch: int, per_device_batch: int, world_size: int) -> str:
    """Word the arithmetic for the provenance of ``batch.accumulation``."""
    return f"formula: {global_batch} / ({per_device_batch} x {world_size})"


def largest_per_device(global_batch: int, at_most: int, world_size: int) -> int | None:
    """Return the largest per-device batch up to ``at_most`` that makes the global batch whole."""
    return max((d for d in _per_device(global_batch, world_size) if d <= at_most), default=None)


def nearest_per_device(global_batch: int, per_device_batch: int, world_size: int) -> list[int]:
    """Return the per-device batches next below and above that make the global batch whole."""
    works = _per_device(global_batch, world_size)
    below = [d for d in works if d <= per_device_batch][-1:]
    above = [d for d in works if d > per_device_batch][:1]
    return below + above


def _per_device(global_batch: int, world_size: int) -> list[int]:
    if global_batch % world_size:
        return []
    share = global_batch // world_size
    halves = [n for n in range(1, int(share**0.5) + 1) if share % n == 0]
    return sorted({d for n in halves for d in (n, share // n)})


def nearest_global(global_batch: int, per_device_batch: int, world_size: int) -> list[int]:
    """Return the multiples of ``per_device x world`` next below and above the global batch."""
    micro = per_device_batch * world_size
    below = global_batch // micro * micro
    return [b for b in (below, below + micro) if b > 0]


def _remedies(global_batch: int, per_device_batch: int, world_size: int) -> list[str]:
    remedies = []
    per_device = nearest_per_device(global_batch, per_device_batch, world_size)
    if per_device:
        remedies.append(f"--batch-size {' or '.join(map(str, per_device))}")
    whole = nearest_global(global_batch, per_device_batch, world_size)
    remedies.append(f"--optimizer-batch-size {' or '.join(map(str, whole))}")
    fewer = [w for w in range(1, world_size) if global_batch % (per_device_batch * w) == 0]
    if fewer:
        remedies.append(f"--set platform.num_devices={fewer[-1]} on one node")
    return remedies
