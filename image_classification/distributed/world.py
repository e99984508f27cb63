"""Join the process group, and find out which ranks are missing.

In a world of one there is no process group.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as env_rendezvous

from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.distributed.launcher_env import rendezvous, restart_count

# Flags and barriers use gloo even where tensors use NCCL: they then need no device tensor and do
# not wait for queued kernels.
_control: dist.ProcessGroup | None = None
# The store through which the ranks joined; after a failed collective, used to find missing ranks.
_store: Store | None = None

# NCCL's watchdog ends a process without an error message, so gloo, which raises, must time out
# first.
_NCCL_EXTRA_TIMEOUT_S = 60.0
# At a restart, the ranks of another machine may first wait for their own collective timeout and
# then be ended and started again by their agent.
_REJOIN_EXTRA_TIMEOUT_S = 120.0
# A running rank meets the same failure: at once where a connection broke within a collective,
# otherwise when it reaches the collective itself.
_REPORT_TIMEOUT_S = 3.0

_LOST_PEER_TEXTS = (
    "Application timeout caused pair closure",
    "Connect timeout ",
    "Connection closed by peer",
    "Connection reset by peer",
    "Gloo",
    "Read timeout ",
    "Socket closed",
    "Timed out waiting",
    "Write timeout ",
    "gloo",
)


class JoinError(DeviceError):
    """The other ranks could not be joined; another start may succeed."""


def control_group() -> dist.ProcessGroup | None:
    """Return the gloo group for host tensors and flags; None in a world of one."""
    return _control


@contextmanager
def process_group(
    world: WorldInfo, backend: str, timeout_s: float, device: torch.device | None = None
) -> Iterator[None]:
    """Join the other ranks for the block.

    timeout_s: for joining (longer in a restart on several machines) and for every collective.
    device: bind an NCCL group to it.

    Raises:
        ConfigError: rank 0's address is unknown. JoinError: it could not be reached.
    """
    global _control, _store
    try:
        if world.world_size > 1:
            _join(world, backend, timeout_s, device)
        yield
    finally:
        _control = _store = None
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(world: WorldInfo, backend: str, timeout_s: float, device: torch.device | None) -> None:
    global _control, _store
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
        if not is_lost_peer(error):
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
    """Return the ranks' common store once all ranks have joined it."""
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
            f"{_name_ranks(absent)} of {world.world_size} did not come within {timeout_s:g} s; "
            "check that all ranks run and that MASTER_PORT is open between the machines"
        )
    return store


def wait_for_all(store: Store, rank: int, world_size: int, timeout_s: float) -> list[int]:
    """Wait until every rank has called this; return those that have not within ``timeout_s``."""
    keys = [f"image_classification/here/{r}" for r in range(world_size)]
    store.set(keys[rank], "1")
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except dist.DistStoreError:
        return [r for r, key in enumerate(keys) if not store.check([key])]
    return []


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


def interface_towards(host: str, port: int) -> str | None:
    """Return the network interface that leads to ``host``; None: unknown host, no route, IPv6."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends no packet
            probe.connect((host, port))
            source = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == source for address in addresses):
            # An alias such as eth0:1 belongs to the interface before the colon.
            return str(name).partition(":")[0]
    return None


def is_lost_peer(error: BaseException) -> bool:
    """Return whether ``error`` means that another rank has ended or does not answer.

    Gloo raises plain RuntimeErrors, which only their text distinguishes.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER_TEXTS)


def lost_peer_message(error: BaseException, timeout_s: float) -> str | None:
    """Return one line that names the ranks that caused ``error``; None for another cause.

    Every rank with such an error calls this within `process_group` (timeout_s: as there); it takes
    seconds.
    """
    if _store is None or not is_lost_peer(error):
        return None
    missing = missing_ranks(_store, dist.get_rank(), dist.get_world_size())
    return describe_loss(error, missing, timeout_s)


def missing_ranks(
    store: Store, rank: int, world_size: int, timeout_s: float = _REPORT_TIMEOUT_S
) -> list[int]:
    """Return the ranks that do not report a failed collective within ``timeout_s``.

    Every rank whose collective failed calls this: it sets its key in ``store`` and looks for the
    others'. A rank that is dead, stopped or hanging sets none. If the store does not answer, its
    host is dead or stopped: rank 0.
    """
    keys = {r: f"image_classification/lost/{r}" for r in range(world_size)}
    missing = keys.keys() - {rank}
    answered = threading.Event()

    def collect() -> None:
        try:
            store.set_timeout(timedelta(seconds=timeout_s))
            store.set(keys[rank], "1")
            deadline = time.monotonic() + timeout_s
            while missing and time.monotonic() < deadline:
                missing.difference_update([r for r in missing if store.check([keys[r]])])
                answered.set()
                time.sleep(0.05)
        except (dist.DistError, RuntimeError):
            answered.clear()

    # The store of a stopped process accepts requests and never answers.
    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(timeout_s + 1.0)
    if not answered.is_set():
        return [0] if rank != 0 else []
    return sorted(missing)


def describe_loss(error: BaseException, missing: list[int], timeout_s: float) -> str:
    """Return one line on the failed collective: the missing ranks and the likely cause."""
    if not missing:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"a collective failed on this rank and on all others: {first_line}"
    who, text = _name_ranks(missing), str(error).lower()
    if "timed out" in text or "timeout" in text:
        return f"{who} did not answer within {timeout_s:g} s: stopped, hanging or cut off"
    return f"lost contact with {who}; see its own error"


def _name_ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
