"""The world of processes: where this one stands, the process group, and what ranks agree on.

Functions on tensors and flags work in any world; in a world of one they return at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as meet

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.types import WorldInfo
from image_classification.hardware.contact import describe_loss, lost_peer, missing_ranks
from image_classification.hardware.network import interface_towards

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")

# Flags and barriers go over gloo even where tensors go over NCCL: they then neither wait for
# queued kernels nor need a device tensor.
_control: dist.ProcessGroup | None = None
# Where the ranks met; kept to ask it who is missing.
_store: Store | None = None

# NCCL's own watch ends a process without a word, so gloo's, which raises, is to be first.
_NCCL_LATER_S = 60.0


def restart_count(environ: Mapping[str, str]) -> int:
    """Return how often the elastic agent that started this process has restarted it."""
    return int(environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class JoinError(DeviceError):
    """The other ranks could not be joined; they may be there at another try."""


def detect_world(environ: Mapping[str, str]) -> WorldInfo | None:
    """Read this process's place from what started it; None when nothing did.

    Looked for in this order: torchrun, Open MPI's mpirun, PMI (MPICH, Intel MPI), Slurm's srun.
    A launcher nested in another is the nearer one: torchrun or mpirun inside a Slurm job win.
    Slurm and MPI steps of one task are no world, so that ``srun -n1 launch.py`` starts the
    platform's processes itself; neither is a batch script, which has Slurm's job variables but
    not those of a step.

    Raises:
        ConfigError: the variables are incomplete or contradict one another.
    """
    if any(key in environ for key in _TORCHRUN):
        return _from_torchrun(environ)
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return _from_keys(
            environ,
            "Open MPI",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        )
    slurm_step = "SLURM_STEP_NUM_TASKS" in environ
    if "PMI_SIZE" in environ and ("MPI_LOCALRANKID" in environ or not slurm_step):
        return _from_keys(
            environ, "PMI", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"
        )
    if slurm_step:
        return _from_slurm(environ)
    return None


def _number(environ: Mapping[str, str], key: str, source: str) -> int:
    value = environ.get(key)
    if value is None:
        raise ConfigError(
            f"{source} started this process but {key} is not set; start it through {source} "
            f"itself, or unset {source}'s other variables to run alone"
        )
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{key}={value!r} is not a whole number; unset or correct it") from None


def _from_torchrun(environ: Mapping[str, str]) -> WorldInfo | None:
    # Container hooks such as enroot's translate a Slurm step into torchrun's variables, without
    # LOCAL_WORLD_SIZE and even for a step of one task.
    slurm_step = "SLURM_STEP_NUM_TASKS" in environ
    missing = [key for key in _TORCHRUN if key not in environ]
    if missing:
        present = [key for key in _TORCHRUN if key in environ]
        raise ConfigError(
            f"{', '.join(present)} set but {', '.join(missing)} not: a world of processes needs "
            "all of RANK, LOCAL_RANK and WORLD_SIZE; start through torchrun, or unset them to "
            "run alone"
        )
    rank, local_rank, world = (_number(environ, key, "torchrun") for key in _TORCHRUN)
    if world == 1 and slurm_step and "TORCHELASTIC_RUN_ID" not in environ:
        return None
    if "LOCAL_WORLD_SIZE" in environ:
        local_world = _number(environ, "LOCAL_WORLD_SIZE", "torchrun")
    elif world == 1:
        local_world = 1
    elif slurm_step:
        local_world = _slurm_local_world(environ, world)
    else:
        raise ConfigError(
            f"WORLD_SIZE is {world} but LOCAL_WORLD_SIZE is not set; start through torchrun, or "
            "set it to the number of processes on each node"
        )
    return _checked(rank, local_rank, world, local_world, "torchrun")


def _from_keys(
    environ: Mapping[str, str], source: str, rank: str, local_rank: str, world: str, local: str
) -> WorldInfo | None:
    size = _number(environ, world, source)
    if size == 1:
        return None
    return _checked(
        _number(environ, rank, source),
        _number(environ, local_rank, source),
        size,
        _number(environ, local, source),
        source,
    )


def _from_slurm(environ: Mapping[str, str]) -> WorldInfo | None:
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", "srun")
    if tasks == 1:
        return None
    if "SLURM_NTASKS" in environ and _number(environ, "SLURM_NTASKS", "srun") != tasks:
        raise ConfigError(
            f"SLURM_NTASKS={environ['SLURM_NTASKS']} contradicts SLURM_STEP_NUM_TASKS={tasks}; "
            "start through srun directly, or unset the variables inherited from another step"
        )
    return _checked(
        _number(environ, "SLURM_PROCID", "srun"),
        _number(environ, "SLURM_LOCALID", "srun"),
        tasks,
        _slurm_local_world(environ, tasks),
        "srun",
    )


def _slurm_local_world(environ: Mapping[str, str], tasks: int) -> int:
    key = "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environ else "SLURM_NNODES"
    nodes = _number(environ, key, "srun")
    if nodes < 1 or tasks % nodes:
        raise ConfigError(
            f"{tasks} tasks do not spread evenly over {nodes} nodes; give srun the same "
            "--ntasks-per-node everywhere"
        )
    return tasks // nodes


def _checked(rank: int, local_rank: int, world: int, local_world: int, source: str) -> WorldInfo:
    if not (
        0 <= rank < world
        and 0 <= local_rank < local_world <= world
        and world % local_world == 0
        and local_rank <= rank
    ):
        raise ConfigError(
            f"{source} gives rank {rank} of {world} and local rank {local_rank} of {local_world}, "
            "which contradict one another; start the same number of processes on every node, and "
            "unset variables left over from another launcher"
        )
    return WorldInfo(
        rank=rank,
        local_rank=local_rank,
        world_size=world,
        local_world_size=local_world,
        num_nodes=world // local_world,
    )


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: ``dgx[003-010,12],login`` -> ``dgx003``."""
    first = re.split(r",(?![^\[]*\])", nodelist, maxsplit=1)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def rendezvous(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return rank 0's address and port.

    ``MASTER_ADDR`` and ``MASTER_PORT`` where set. In a Slurm step: its first node (task 0 runs
    there; srun's own host only where no node list is given, since that may be a login node),
    and a port in 20000..29999, below Linux's ephemeral ports, derived from job and step.

    Raises:
        ConfigError: neither is known, or the port is no port.
    """
    address = environ.get("MASTER_ADDR")
    if address is None:
        nodes = environ.get("SLURM_STEP_NODELIST")
        address = first_host(nodes) if nodes else environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if "MASTER_PORT" in environ:
        port = _number(environ, "MASTER_PORT", "the launcher")
    elif "SLURM_JOB_ID" in environ:
        job = _number(environ, "SLURM_JOB_ID", "srun")
        step = _number(environ, "SLURM_STEP_ID", "srun") if "SLURM_STEP_ID" in environ else 0
        port = 20_000 + (job * 31 + step) % 10_000
    else:
        port = None
    if address is None or port is None:
        raise ConfigError(
            "several processes were started but not where rank 0 is: set MASTER_ADDR to its host "
            "and MASTER_PORT to a free port there (mpirun: -x MASTER_ADDR -x MASTER_PORT)"
        )
    if not 0 <= port < 65_536:
        raise ConfigError(f"MASTER_PORT={port} is not a port; set one between 1024 and 65535")
    return address, port


def init_process_group(
    world: WorldInfo,
    backend: str,
    timeout_s: float = 600.0,
    device: torch.device | None = None,
) -> None:
    """Join the other ranks; in a world of one, do nothing.

    Sets ``MASTER_ADDR`` and ``MASTER_PORT`` in the environment where a Slurm step left them out,
    and on several machines ``GLOO_SOCKET_IFNAME`` unless it is set.
    timeout_s: for joining and for every collective. device: bind an NCCL group to it.

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
            meeting = meet("env://", world.rank, world.world_size, timeout=timeout)
            met, _, _ = next(meeting)
            # An agent keeps one store for all starts, with the addresses of ranks long dead.
            _store = PrefixStore(f"start-{restart_count(os.environ)}", met)
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
