"""Which network interface leads to the other machines.

The world of processes: where this one stands, the process group, and what ranks agree on.

Functions on tensors and flags work in any world; in a world of one they return at once.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as meet

from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.distributed.launcher_env import (
    rendezvous,
    restart_count,
)
from image_classification.distributed.lost_ranks import (
    describe_loss,
    lost_peer,
    missing_ranks,
    name_ranks,
    wait_for_all,
)

_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40
_ROOM_BYTES = 128 * _IFREQ_BYTES


def interface_towards(host: str, port: int) -> str | None:
    """Return the name of the interface from which packets to ``host`` leave, or on which it is.

    None where that cannot be told: an unknown host, no route, IPv6 only, not Linux. Nothing is
    sent.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            source = probe.getsockname()[0]
        return _interfaces().get(source)
    except OSError:
        return None


def _interfaces() -> dict[str, str]:
    """Return the name of the interface of every IPv4 address of this machine."""
    room = array.array("B", bytes(_ROOM_BYTES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("iL", _ROOM_BYTES, room.buffer_info()[0])
        filled = struct.unpack("iL", fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, request))[0]
    found: dict[str, str] = {}
    for start in range(0, filled, _IFREQ_BYTES):
        entry = room[start : start + _IFREQ_BYTES].tobytes()
        name = entry[:16].split(b"\0", 1)[0].decode()
        # Aliases such as eth0:1 belong to the interface before the colon.
        found.setdefault(socket.inet_ntoa(entry[20:24]), name.partition(":")[0])
    return found


# Flags and barriers go over gloo even where tensors go over NCCL: they then neither wait for
# queued kernels nor need a device tensor.
_control: dist.ProcessGroup | None = None
# Where the ranks met; kept to ask it who is missing.
_store: Store | None = None

# NCCL's own watch ends a process without a word, so gloo's, which raises, is to be first.
_NCCL_LATER_S = 60.0
# Started again, the ranks of another machine may first wait out their own collective timeout, then
# be ended by their agent and start as these did.
_REJOIN_S = 120.0


class JoinError(DeviceError):
    """The other ranks could not be joined; they may be there at another try."""


def init_process_group(
    world: WorldInfo,
    backend: str,
    timeout_s: float = 600.0,
    device: torch.device | None = None,
) -> None:
    """Join the other ranks; in a world of one, do nothing.

    Sets ``MASTER_ADDR`` and ``MASTER_PORT`` in the environment where a Slurm step left them out,
    and on several machines ``GLOO_SOCKET_IFNAME`` unless it is set.
    timeout_s: for joining (longer in a restart on several machines) and for every collective.
    device: bind an NCCL group to it.

    Raises:
        ConfigError: nobody said where rank 0 is. JoinError: it could not be reached.
    """
    global _control, _store
    if world.world_size == 1:
        return
    address, port = rendezvous(os.environ)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    if world.num_nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # Left alone, gloo listens where this machine's own name leads, which in a container or
        # with a line in /etc/hosts is often the loopback interface.
        interface = interface_towards(address, port)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    timeout = timedelta(seconds=timeout_s)
    longer = timedelta(seconds=timeout_s + _NCCL_LATER_S)
    try:
        with _quiet_stdout():
            _store = _meet(world, timeout_s)
            dist.init_process_group(
                backend,
                store=PrefixStore("group", _store),
                rank=world.rank,
                world_size=world.world_size,
                timeout=timeout if backend == "gloo" else longer,
                device_id=device if backend == "nccl" else None,
            )
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        reason = str(error).splitlines()[0]
        raise JoinError(
            f"rank {world.rank} of {world.world_size} could not join rank 0 at {address}:{port} "
            f"within {timeout_s:g} s ({reason}); check that all ranks run, that the host "
            "resolves, and that MASTER_PORT is free and open"
        ) from error
    if backend == "gloo":
        _control = dist.group.WORLD
    else:
        with _quiet_stdout():
            _control = dist.new_group(backend="gloo", timeout=timeout)


def _meet(world: WorldInfo, timeout_s: float) -> Store:
    """Return the ranks' common store once all have come.

    Raises:
        JoinError: some have not. RuntimeError: the store cannot be reached.
    """
    meeting = meet("env://", world.rank, world.world_size, timeout=timedelta(seconds=timeout_s))
    met, _, _ = next(meeting)
    count = restart_count(os.environ)
    # An agent keeps one store for all starts, with the addresses of ranks long dead.
    store = PrefixStore(f"start-{count}", met)
    patience_s = timeout_s + (_REJOIN_S if count > 0 and world.num_nodes > 1 else 0.0)
    absent = wait_for_all(store, world.rank, world.world_size, patience_s)
    if absent:
        raise JoinError(
            f"{name_ranks(absent)} of {world.world_size} did not come within {patience_s:g} s; "
            "check that all ranks run and that MASTER_PORT is open between the machines"
        )
    return store


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Drop what C++ prints to stdout: gloo announces every connection of every rank there."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def lost_peer_message(error: BaseException, timeout_s: float) -> str | None:
    """Return one line that names the ranks behind ``error``; None where it has another cause.

    To be called by every rank that meets it, before it leaves the process group. Takes seconds.
    timeout_s: that of `init_process_group`.
    """
    if _store is None or not lost_peer(error):
        return None
    missing = missing_ranks(_store, dist.get_rank(), dist.get_world_size())
    return describe_loss(error, missing, timeout_s)


def destroy() -> None:
    """Leave the process group; may be called twice, or without one."""
    global _control, _store
    _control = _store = None
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def process_group(
    world: WorldInfo,
    backend: str,
    timeout_s: float = 600.0,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Be in the process group for the length of the block (see `init_process_group`)."""
    init_process_group(world, backend, timeout_s, device)
    try:
        yield
    finally:
        destroy()


def control_group() -> dist.ProcessGroup | None:
    """Return the gloo group for host tensors and flags; None in a world of one."""
    return _control


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of ``tensor`` over all ranks, on its device; any numeric dtype.

    Integer sums are exact. The input is left as it is (and returned in a world of one).
    """
    if _control is None:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total, group=_control if total.device.type == "cpu" else None)
    return total


def agree_max(flag: int) -> int:
    """Return the largest ``flag`` of all ranks, so that all take the same branch."""
    if _control is None:
        return flag
    value = torch.tensor(flag, dtype=torch.int64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_control)
    return int(value)


def barrier() -> None:
    """Wait until every rank is here; queued device work may still run."""
    if _control is not None:
        dist.barrier(group=_control)


@torch.no_grad()
def broadcast_module_state(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and persistent buffers, in place.

    One collective a dtype: hundreds of small BN buffers would otherwise be one each.
    """
    if _control is None:
        return
    by_dtype: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in module.state_dict().values():
        by_dtype.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for (_, device), tensors in by_dtype.items():
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.broadcast(flat, src=0, group=_control if device.type == "cpu" else None)
        parts = torch.split(flat, [t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
