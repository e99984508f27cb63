"""Number of processes and batch sizes: a platform's settings on the devices that there are.

Fewer devices keep the global batch: accumulation = global / (per_device x number of processes).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.types import DevicesFound

if TYPE_CHECKING:
    from image_classification.config.resolve import Values

NOT_COMPARABLE = "throughput is not comparable with published figures"
NO_UPDATE_MODES = ("benchmark_inference", "benchmark_data", "evaluate")
"""Modes without an optimizer step, for which the global batch does not matter."""


def accumulation(global_batch: int, per_device_batch: int, world_size: int) -> int:
    """Return the number of micro-batches per optimizer step.

    Batches in images; ``world_size`` in devices.

    Raises:
        ConfigError: not a positive integer. The message has the arithmetic and the nearest
            per-device batch, global batch and device count that work.
    """
    micro = per_device_batch * world_size
    if global_batch % micro == 0:
        return global_batch // micro
    remedies = []
    per_device = nearest_per_device(global_batch, per_device_batch, world_size)
    if per_device:
        remedies.append(f"--batch-size {' or '.join(map(str, per_device))}")
    multiples = nearest_global(global_batch, per_device_batch, world_size)
    remedies.append(f"--optimizer-batch-size {' or '.join(map(str, multiples))}")
    fewer = [w for w in range(1, world_size) if global_batch % (per_device_batch * w) == 0]
    if fewer:
        remedies.append(f"--set platform.num_devices={fewer[-1]} on one node")
    raise ConfigError(
        f"a global batch of {global_batch} cannot be split into {per_device_batch} images on "
        f"{world_size} device{'s' if world_size > 1 else ''}: {global_batch} / "
        f"({per_device_batch} x {world_size}) = {global_batch / micro:.3g}, not a positive whole "
        f"number; these work: {'; '.join(remedies)}"
    )


def _divisors_per_device(global_batch: int, world_size: int) -> list[int]:
    """Return the per-device batches that divide the global batch on ``world_size`` devices."""
    if global_batch % world_size:
        return []
    share = global_batch // world_size
    small = [n for n in range(1, int(share**0.5) + 1) if share % n == 0]
    return sorted({d for n in small for d in (n, share // n)})


def largest_per_device(global_batch: int, at_most: int, world_size: int) -> int | None:
    """Return the largest per-device batch up to ``at_most`` that divides the global batch."""
    divisors = _divisors_per_device(global_batch, world_size)
    return max((d for d in divisors if d <= at_most), default=None)


def nearest_per_device(global_batch: int, per_device_batch: int, world_size: int) -> list[int]:
    """Return the per-device batches next below and above that divide the global batch."""
    divisors = _divisors_per_device(global_batch, world_size)
    below = [d for d in divisors if d <= per_device_batch]
    above = [d for d in divisors if d > per_device_batch]
    return below[-1:] + above[:1]


def nearest_global(global_batch: int, per_device_batch: int, world_size: int) -> list[int]:
    """Return the multiples of ``per_device x world`` next below and above the global batch."""
    micro = per_device_batch * world_size
    below = global_batch // micro * micro
    return [b for b in (below, below + micro) if b > 0]


def device_matches(wanted: str, found: str) -> bool:
    """Return whether ``found`` has every word of ``wanted``; ``T4`` is not in ``T400``."""
    return set(_words(wanted)) <= set(_words(found))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.casefold())


def place(
    values: Values, available: DevicesFound | None, world_size: int | None, num_nodes: int
) -> list[str]:
    """Set device counts and batch sizes for these devices; return warnings.

    The device counts are, in this order, those of the processes already started (``world_size`` on
    ``num_nodes``), the user's, the devices ``available`` (None: not known), the platform's.

    Raises:
        DeviceError: no device of the platform's type, or fewer than the user asked for.
        ConfigError: ``world_size`` contradicts the user's settings, or `accumulation` fails.
    """
    platform, device = values["platform.name"], values["platform.device"]
    published_size = values.inherited("platform.num_devices") * values.inherited(
        "platform.num_nodes"
    )
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
    return [f"{note}: {NOT_COMPARABLE}" for note in notes] + _set_batch(values, published_size)


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
    wanted_count = values["platform.num_devices"]
    if available.kind != device or available.count == 0:
        raise DeviceError(
            f"{platform} needs {device} devices and this machine has none; use --platform CPU "
            f"with its own settings, or --set platform.device=cpu to run {platform}'s anyway, "
            "not comparable"
        )
    notes = []
    if not joined:
        if values.given("platform.num_devices") and available.count < wanted_count:
            raise DeviceError(
                f"platform.num_devices is {wanted_count} "
                f"({values.origin('platform.num_devices')}) and this machine has "
                f"{available.count}; ask for {available.count} or fewer"
            )
        published = _count(values)
        if available.count < wanted_count:
            origin = f"devices found ({platform}: {wanted_count})"
            values.put("platform.num_devices", available.count, origin)
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
            f"{world_size} processes were started on {num_nodes} nodes; "
            "start the same number on each node"
        )
    published_size = values["platform.num_devices"] * values["platform.num_nodes"]
    nodes = f"{num_nodes} node{'s' if num_nodes > 1 else ''}"
    counts = {"platform.num_devices": world_size // num_nodes, "platform.num_nodes": num_nodes}
    for key, value in counts.items():
        if values[key] == value:
            continue
        if values.given(key):
            raise ConfigError(
                f"{key} is {values[key]} ({values.origin(key)}) but {world_size} processes were "
                f"started on {nodes}; leave the setting out, or start that many"
            )
        values.put(key, value, "the processes started")
    if world_size == published_size or values.changed("platform.device"):
        return []
    return [f"{values['platform.name']} has {published_size} processes, this run {world_size}"]


def _set_batch(values: Values, published_size: int) -> list[str]:
    world_size = values["platform.num_devices"] * values["platform.num_nodes"]
    per_device, global_batch = values["batch.per_device"], values["batch.global"]
    mode, notes = values["run.mode"], []
    if global_batch is None:
        global_batch = per_device * world_size
        origin = f"{values.origin('batch.global')}: {per_device} x {world_size}"
        values.put("batch.global", global_batch, origin)
    elif mode in NO_UPDATE_MODES and global_batch % (per_device * world_size):
        global_batch = per_device * world_size
        origin = f"formula: {per_device} x {world_size}, as {mode} makes no optimizer step"
        values.put("batch.global", global_batch, origin)
    elif world_size != published_size and not values.given("batch.per_device"):
        fitting = largest_per_device(global_batch, per_device, world_size)
        if fitting is not None and fitting != per_device:
            notes.append(
                f"{fitting} images per device instead of {per_device}, so that {world_size} "
                f"devices make the global batch of {global_batch}; batch normalization sees them "
                "separately"
            )
            origin = (
                f"formula: the largest up to {per_device} that divides {global_batch} / "
                f"{world_size}"
            )
            values.put("batch.per_device", fitting, origin)
            per_device = fitting
    count = accumulation(global_batch, per_device, world_size)
    formula = f"formula: {global_batch} / ({per_device} x {world_size})"
    values.put("batch.accumulation", count, formula)
    return notes
