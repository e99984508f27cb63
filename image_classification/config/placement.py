"""Batch arithmetic: accumulation = global / (per_device x world), in this one place.

Fitting a platform's devices to the machine: same global batch on what is there.
"""

from __future__ import annotations

import re

from image_classification.config.provenance import Values
from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.types import DevicesFound


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


NOT_COMPARABLE = "throughput is not comparable with published figures"


def device_matches(wanted: str, found: str) -> bool:
    """Whether a device's own name holds every word of ``wanted`` (``T4`` is not in ``T400``)."""
    return set(_words(wanted)) <= set(_words(found))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.casefold())


def place(
    values: Values, available: DevicesFound | None, world_size: int | None, num_nodes: int
) -> list[str]:
    """Settle ``platform.num_devices`` and ``platform.num_nodes``; return what differs.

    The order of say: a world already joined, the user's own settings, what is there (None: not
    looked at), the platform.

    Raises:
        DeviceError: no device of the platform's kind, or fewer than the user asked for.
        ConfigError: the joined world contradicts the user's own settings.
    """
    platform, device = values["platform.name"], values["platform.device"]
    notes = []
    if values.changed("platform.device"):
        notes.append(f"{platform} is run on {device} ({values.origin('platform.device')})")
        _one_process(values)
    elif values.changed("platform.num_devices") or values.changed("platform.num_nodes"):
        notes.append(f"{platform} is run on {_count(values)}, as the command line says")
    if available is not None and device != "cpu":
        notes += _fit(values, available, joined=world_size is not None)
    if world_size is not None:
        notes += _join(values, world_size, num_nodes)
    return [f"{note}: {NOT_COMPARABLE}" for note in notes]


def _count(values: Values) -> str:
    nodes, devices = values["platform.num_nodes"], values["platform.num_devices"]
    text = f"{devices} {values['platform.device']} device{'s' if devices > 1 else ''}"
    return f"{nodes} nodes of {text}" if nodes > 1 else text


def _one_process(values: Values) -> None:
    origin = (
        f"one, as platform.device is {values['platform.device']} "
        f"({values.origin('platform.device')})"
    )
    for key in ("platform.num_devices", "platform.num_nodes"):
        if not values.given(key):
            values.put(key, 1, origin)


def _fit(values: Values, available: DevicesFound, joined: bool) -> list[str]:
    platform, device = values["platform.name"], values["platform.device"]
    asked = values["platform.num_devices"]
    if available.kind != device or available.count == 0:
        raise DeviceError(
            f"{platform} needs {device} devices and this machine has none; use --platform CPU "
            f"with its own settings, or --set platform.device=cpu to run {platform}'s anyway, "
            "not comparable"
        )
    notes = []
    if not joined:
        if values.given("platform.num_devices") and available.count < asked:
            raise DeviceError(
                f"platform.num_devices is {asked} ({values.origin('platform.num_devices')}) and "
                f"this machine has {available.count}; ask for {available.count} or fewer"
            )
        published = _count(values)
        if available.count < asked:
            values.put(
                "platform.num_devices", available.count, f"devices found ({platform}: {asked})"
            )
        if values["platform.num_nodes"] > 1 and not values.given("platform.num_nodes"):
            values.put("platform.num_nodes", 1, "not started under torchrun, Slurm or MPI")
        if _count(values) != published:
            notes.append(f"{platform} has {published}, this run {_count(values)}")
    wanted = values["platform.device_name"]
    others = sorted({n for n in available.names if wanted and not device_matches(wanted, n)})
    if others and not values.changed("platform.device"):
        notes.append(f"{platform} has {wanted} devices, this machine {', '.join(others)}")
    return notes


def _join(values: Values, world_size: int, num_nodes: int) -> list[str]:
    if world_size % num_nodes:
        raise ConfigError(
            f"the joined world has {world_size} processes on {num_nodes} nodes; "
            "start the same number on each node"
        )
    published = values["platform.num_devices"] * values["platform.num_nodes"]
    nodes = f"{num_nodes} node{'s' if num_nodes > 1 else ''}"
    for key, value in (
        ("platform.num_devices", world_size // num_nodes),
        ("platform.num_nodes", num_nodes),
    ):
        if values[key] == value:
            continue
        if values.given(key):
            raise ConfigError(
                f"{key} is {values[key]} ({values.origin(key)}) but the joined world has "
                f"{world_size} processes on {nodes}; leave the setting out, or start that many"
            )
        values.put(key, value, "the joined world")
    if world_size == published or values.changed("platform.device"):
        return []
    platform = values["platform.name"]
    return [f"{platform} has {published} processes, the joined world {world_size}"]
