"""Join the process group, and the collectives on tensors and flags.

In a world of one, every function returns at once.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as env_rendezvous

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

# Flags and barriers use gloo even where tensors use NCCL: they then need no device tensor and do
# not wait for queued kernels.
_control: dist.ProcessGroup | None = None
# Where the ranks joined; also tells which ranks are missing after a failed collective.
_store: Store | None = None

# NCCL's watchdog ends a process without an error message, so gloo, which raises, must time out
# first.
_NCCL_EXTRA_TIMEOUT_S = 60.0
# At a restart, the ranks of another machine may first wait for their own collective timeout and
# then be ended and started again by their agent.
_REJOIN_EXTRA_TIMEOUT_S = 120.0


class JoinError(DeviceError):
    """The other ranks could not be joined; another start may succeed."""


def init_process_group(
    world: WorldInfo,
    backend: str,
    timeout_s: float = 600.0,
    device: torch.device | None = None,
) -> None:
    """Join the other ranks; in a world of one, do nothing.

    Sets ``MASTER_ADDR`` and ``MASTER_PORT`` in the environment where Slurm did not, and on several
    machines ``GLOO_SOCKET_IFNAME`` unless it is set. timeout_s: for joining (longer in a restart on
    several machines) and for every collective. device: bind an NCCL group to it.

    Raises:
        ConfigError: rank 0's address is unknown. JoinError: it could not be reached.
    """
    global _control, _store
    if world.world_size == 1:
        return
    address, port = rendezvous(os.environ)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    if world.num_nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # By default gloo listens on the address of this machine's host name, which in a container
        # or with a line in /etc/hosts is often the loopback interface.
        interface = interface_towards(address, port)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    timeout = timedelta(seconds=timeout_s)
    nccl_timeout = timedelta(seconds=timeout_s + _NCCL_EXTRA_TIMEOUT_S)
    try:
        with _quiet_stdout():
            _store = _join_store(world, timeout_s)
            dist.init_process_group(
                backend,
                store=PrefixStore("group", _store),
                rank=world.rank,
                world_size=world.world_size,
                timeout=timeout if backend == "gloo" else nccl_timeout,
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


def _join_store(world: WorldInfo, timeout_s: float) -> Store:
    """Return the ranks' common store once all ranks have joined it.

    Raises:
        JoinError: some have not. RuntimeError: the store cannot be reached.
    """
    timeout = timedelta(seconds=timeout_s)
    common, _, _ = next(env_rendezvous("env://", world.rank, world.world_size, timeout=timeout))
    count = restart_count(os.environ)
    # An agent keeps one store for all starts, with the addresses of ranks that have ended.
    store = PrefixStore(f"start-{count}", common)
    if count > 0 and world.num_nodes > 1:
        timeout_s += _REJOIN_EXTRA_TIMEOUT_S
    absent = wait_for_all(store, world.rank, world.world_size, timeout_s)
    if absent:
        raise JoinError(
            f"{name_ranks(absent)} of {world.world_size} did not come within {timeout_s:g} s; "
            "check that all ranks run and that MASTER_PORT is open between the machines"
        )
    return store


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Discard what C++ prints to stdout: gloo prints a line for every connection of every rank."""
    sys.stdout.flush()
    stdout = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(null)


def lost_peer_message(error: BaseException, timeout_s: float) -> str | None:
    """Return one line that names the ranks that caused ``error``; None for another cause.

    Every rank with such an error calls this before it leaves the process group; it takes seconds.
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
    """Join the process group for the block; see `init_process_group`."""
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

    Integer sums are exact. The input is unchanged (and returned in a world of one).
    """
    if _control is None:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total, group=_control if total.device.type == "cpu" else None)
    return total


def agree_max(flag: int) -> int:
    """Return the maximum of all ranks' ``flag``, so that all take the same branch."""
    if _control is None:
        return flag
    value = torch.tensor(flag, dtype=torch.int64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_control)
    return int(value)


def barrier() -> None:
    """Wait until every rank calls this; queued device work may still run."""
    if _control is not None:
        dist.barrier(group=_control)


@torch.no_grad()
def broadcast_module_state(module: nn.Module) -> None:
    """Copy rank 0's parameters and persistent buffers to every rank, in place.

    One collective per dtype, instead of one for each of hundreds of small BN buffers.
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


def interface_towards(host: str, port: int) -> str | None:
    """Return the name of the network interface that leads to ``host``; sends no packet.

    None where it is unknown: an unknown host, no route, IPv6 only.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            source = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == source for address in addresses):
            # An alias such as eth0:1 belongs to the interface before the colon.
            return str(name).partition(":")[0]
    return None
