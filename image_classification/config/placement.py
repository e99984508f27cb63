"""Number of processes and batch sizes: a platform's settings on the devices that there are.

Fewer devices keep the global batch: accumulation = global / (per_device x number of processes).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.types import DevicesFound
from image_classification.core.units import counted

if TYPE_CHECKING:
    from image_classification.config.resolve import Values

# Modes without an optimizer step, for which the global batch does not matter.
_NO_UPDATE_MODES = ("benchmark_inference", "benchmark_data", "evaluate")


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
    fitting = per_device_batches(global_batch, world_size)
    below = [batch for batch in fitting if batch <= per_device_batch][-1:]
    above = [batch for batch in fitting if batch > per_device_batch][:1]
    if fitting:
        remedies.append(f"--batch-size {' or '.join(map(str, below + above))}")
    multiples = [global_batch // micro * micro, global_batch // micro * micro + micro]
    remedies.append(f"--optimizer-batch-size {' or '.join(str(m) for m in multiples if m)}")
    fewer = [w for w in range(1, world_size) if global_batch % (per_device_batch * w) == 0]
    if fewer:
        remedies.append(f"--devices {fewer[-1]} on one node")
    raise ConfigError(
        f"a global batch of {global_batch} cannot be split into {per_device_batch} images on "
        f"{counted(world_size, 'device')}: {global_batch} / "
        f"({per_device_batch} x {world_size}) = {global_batch / micro:.3g}, not a positive whole "
        f"number; these work: {'; '.join(remedies)}"
    )


def per_device_batches(global_batch: int, world_size: int) -> list[int]:
    """Return the per-device batches that divide the global batch, in ascending order."""
    if global_batch % world_size:
        return []
    share = global_batch // world_size
    small = [n for n in range(1, int(share**0.5) + 1) if share % n == 0]
    return sorted({*small, *(share // n for n in small)})


def device_matches(wanted: str, found: str) -> bool:
    """Return whether ``found`` has every word of ``wanted``; ``T4`` is not in ``T400``."""
    wanted_words, found_words = (
        set(re.findall(r"[a-z0-9]+", name.casefold())) for name in (wanted, found)
    )
    return wanted_words <= found_words


def place(
    values: Values, available: DevicesFound | None, world_size: int | None, num_nodes: int
) -> list[str]:
    """Set device counts and batch sizes for these devices; return warnings.

    The device counts are, in this order, those of the processes already started (``world_size`` on
    ``num_nodes``), the user's, the devices ``available`` (None: not known), the platform's. A count
    of ``all`` is that of the devices available, 1 where they are not known.

    Raises:
        DeviceError: no device of the platform's type, or fewer than the user asked for.
        ConfigError: ``world_size`` contradicts the user's settings, or `accumulation` fails.
    """
    platform, device = values["platform.name"], values["platform.device"]
    counts = ("platform.num_devices", "platform.num_nodes")
    published_size = (values.inherited(counts[0]) or 0) * values.inherited(counts[1])
    notes = []
    if values.changed("platform.device"):
        origin = values.origins["platform.device"]
        notes.append(f"{platform} is run on {device} ({origin})")
        for key in counts:
            if not values.given(key):
                values.put(key, 1, f"one, as platform.device is {device} ({origin})")
    if available is not None and device != "cpu":
        _check_kind(platform, device, available)
    _count_devices(values, available, world_size, num_nodes)
    if (
        published_size
        and not values.changed("platform.device")
        and any(map(values.changed, counts))
    ):
        notes.append(f"{platform} is run on {_count(values)}, as the command line says")
    if available is not None and device != "cpu":
        notes += _fit(values, available, joined=world_size is not None)
    if world_size is not None:
        differs = _join(values, world_size, num_nodes)
        notes += differs if published_size else []
    notes = [f"{note}: throughput is not comparable with published figures" for note in notes]
    return notes + _set_batch(values, published_size)


def _count(values: Values) -> str:
    nodes = values["platform.num_nodes"]
    text = counted(values["platform.num_devices"], f"{values['platform.device']} device")
    return f"{nodes} nodes of {text}" if nodes > 1 else text


def _check_kind(platform: str, device: str, available: DevicesFound) -> None:
    if available.kind != device or available.count == 0:
        raise DeviceError(
            f"{platform} needs {device} devices and this machine has none; use --platform CPU, or "
            f"--set platform.device=cpu to run the settings of {platform} on the CPU (slow, not "
            "comparable)"
        )


def _count_devices(
    values: Values, available: DevicesFound | None, world_size: int | None, num_nodes: int
) -> None:
    """Replace ``platform.num_devices`` of ``all`` (null) by the number of devices."""
    if values["platform.num_devices"] is not None:
        return
    origin = values.origins["platform.num_devices"]
    if values["platform.device"] == "cpu":
        raise ConfigError(f"{origin}: 'all' counts GPUs; on a CPU give the number of processes")
    if world_size is not None:
        count, source = max(1, world_size // num_nodes), "the processes started"
    elif available is not None:
        count, source = available.count, "all visible devices"
    else:
        count, source = 1, "all visible devices; none are visible here, 1 is assumed"
    values.put("platform.num_devices", count, f"{origin}: {source}")


def _fit(values: Values, available: DevicesFound, joined: bool) -> list[str]:
    """Use no more devices than there are; return what differs from the platform."""
    platform = values["platform.name"]
    wanted_count = values["platform.num_devices"]
    notes = []
    if not joined:
        published = _count(values)
        if available.count < wanted_count:
            if values.given("platform.num_devices"):
                raise DeviceError(
                    f"platform.num_devices is {wanted_count} "
                    f"({values.origins['platform.num_devices']}) and this machine has "
                    f"{available.count}; ask for {available.count} or fewer"
                )
            origin = f"devices found ({platform}: {wanted_count})"
            values.put("platform.num_devices", available.count, origin)
        if values["platform.num_nodes"] > 1 and not values.given("platform.num_nodes"):
            values.put("platform.num_nodes", 1, "not started under torchrun, Slurm or MPI")
        if _count(values) != published:
            notes.append(f"{platform} has {published}, this run {_count(values)}")
    wanted = values["platform.device_name"]
    others = sorted({name for name in available.names if not device_matches(wanted, name)})
    if others and not values.changed("platform.device"):
        notes.append(f"{platform} has {wanted} devices, this machine {', '.join(others)}")
    return notes


def _join(values: Values, world_size: int, num_nodes: int) -> list[str]:
    """Use the processes that were started; return what differs from the platform."""
    if world_size % num_nodes:
        raise ConfigError(
            f"{world_size} processes were started on {num_nodes} nodes; "
            "start the same number on each node"
        )
    published_size = values["platform.num_devices"] * values["platform.num_nodes"]
    counts = {"platform.num_devices": world_size // num_nodes, "platform.num_nodes": num_nodes}
    for key, value in counts.items():
        if values[key] == value:
            continue
        if values.given(key):
            raise ConfigError(
                f"{key} is {values[key]} ({values.origins[key]}) but {world_size} processes were "
                f"started on {counted(num_nodes, 'node')}; leave the setting out, or start that "
                "many"
            )
        values.put(key, value, "the processes started")
    if world_size == published_size or values.changed("platform.device"):
        return []
    return [f"{values['platform.name']} has {published_size} processes, this run {world_size}"]


def _set_batch(values: Values, published_size: int) -> list[str]:
    world_size = values["platform.num_devices"] * values["platform.num_nodes"]
    if values["batch.fit_memory"]:
        if values["platform.device"] == "cpu":
            if values.given("batch.fit_memory"):
                raise ConfigError(
                    f"{values.shown('batch.fit_memory')} is for GPUs: on a CPU give --batch-size"
                )
            values.put("batch.fit_memory", False, "formula: false on a CPU")
        elif values.given("batch.per_device") and not values.given("batch.fit_memory"):
            origin = values.origins["batch.per_device"]
            values.put("batch.fit_memory", False, f"formula: false, as {origin} sets the batch")
    per_device, global_batch = values["batch.per_device"], values["batch.global"]
    mode, notes = values["run.mode"], []
    if global_batch is None:
        global_batch = per_device * world_size
        origin = f"{values.origins['batch.global']}: {per_device} x {world_size}"
        values.put("batch.global", global_batch, origin)
    elif mode in _NO_UPDATE_MODES and global_batch % (per_device * world_size):
        global_batch = per_device * world_size
        origin = f"formula: {per_device} x {world_size}, as {mode} makes no optimizer step"
        values.put("batch.global", global_batch, origin)
    elif world_size != published_size and not values.given("batch.per_device"):
        fitting = [b for b in per_device_batches(global_batch, world_size) if b <= per_device]
        if fitting and fitting[-1] != per_device:
            notes.append(
                f"{fitting[-1]} images per device instead of {per_device}, so that {world_size} "
                f"devices make the global batch of {global_batch}; batch normalization sees them "
                "separately"
            )
            origin = (
                f"formula: the largest up to {per_device} that divides {global_batch} / "
                f"{world_size}"
            )
            per_device = fitting[-1]
            values.put("batch.per_device", per_device, origin)
    count = accumulation(global_batch, per_device, world_size)
    formula = f"formula: {global_batch} / ({per_device} x {world_size})"
    values.put("batch.accumulation", count, formula)
    if values["batch.fit_memory"]:
        origin = values.origins["batch.per_device"]
        values.put("batch.per_device", per_device, f"{origin}; less if the memory needs it")
    return notes
