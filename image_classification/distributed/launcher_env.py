"""Read from the environment which launcher started this process: torchrun, MPI or Slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping

from image_classification.core.errors import ConfigError
from image_classification.core.types import WorldInfo

# Rank, rank on the node, number of ranks, number of ranks on the node.
_VARIABLES = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "Open MPI": tuple(
        f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")
    ),
    "PMI": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", ""),
}


def detect_world(environ: Mapping[str, str]) -> WorldInfo | None:
    """Return this process's ranks as its launcher set them; None where there is no launcher.

    Checked in this order: torchrun, Open MPI's mpirun, PMI (MPICH, Intel MPI), Slurm's srun, so
    that torchrun or mpirun inside a Slurm job take precedence. Slurm and MPI steps of one task do
    not count, so that ``srun -n1 launch.py`` starts the platform's processes itself. Nor does a
    batch script, which has Slurm's job variables but not those of a step.

    Raises:
        ConfigError: the variables are incomplete or contradict one another.
    """
    slurm_step = "SLURM_STEP_NUM_TASKS" in environ
    if any(key in environ for key in _VARIABLES["torchrun"][:3]):
        source = "torchrun"
    elif "OMPI_COMM_WORLD_SIZE" in environ:
        source = "Open MPI"
    elif "PMI_SIZE" in environ and ("MPI_LOCALRANKID" in environ or not slurm_step):
        source = "PMI"
    elif slurm_step:
        source = "srun"
    else:
        return None
    names = _VARIABLES[source]
    world = _number(environ, names[2], source)
    # Container hooks such as enroot's set torchrun's variables from a Slurm step, also for a step
    # of one task, and without LOCAL_WORLD_SIZE.
    hook = source == "torchrun" and slurm_step and "TORCHELASTIC_RUN_ID" not in environ
    if world == 1 and (source != "torchrun" or hook):
        return None
    rank, local_rank = (_number(environ, name, source) for name in names[:2])
    if source == "srun" and _number(environ, "SLURM_NTASKS", source, world) != world:
        raise ConfigError(
            f"SLURM_NTASKS={environ['SLURM_NTASKS']} contradicts {names[2]}={world}; start through "
            "srun directly, or unset the variables inherited from another step"
        )
    if source == "srun" or (source == "torchrun" and names[3] not in environ and world > 1):
        local_world = _ranks_per_node(environ, world, slurm_step)
    else:
        local_world = _number(environ, names[3], source, 1 if source == "torchrun" else None)
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
    return WorldInfo(rank, local_rank, world, local_world, num_nodes=world // local_world)


def _number(environ: Mapping[str, str], key: str, source: str, default: int | None = None) -> int:
    value = environ.get(key, default)
    if value is None:
        present = ", ".join(name for name in _VARIABLES[source] if name in environ)
        raise ConfigError(
            f"the environment has {present} of {source}, but {key} is not set; start through "
            f"{source} itself, or unset the others to run alone"
        )
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{key}={value!r} is not a whole number; unset or correct it") from None


def _ranks_per_node(environ: Mapping[str, str], world: int, slurm_step: bool) -> int:
    if not slurm_step:
        raise ConfigError(
            f"WORLD_SIZE is {world} but LOCAL_WORLD_SIZE is not set; start through torchrun, or "
            "set it to the number of processes on each node"
        )
    key = "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environ else "SLURM_NNODES"
    nodes = _number(environ, key, "srun")
    if nodes < 1 or world % nodes:
        raise ConfigError(
            f"{world} tasks do not spread evenly over {nodes} nodes; give srun the same "
            "--ntasks-per-node everywhere"
        )
    return world // nodes


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: ``dgx[003-010,12],login`` -> ``dgx003``."""
    first = re.split(r",(?![^\[]*\])", nodelist, maxsplit=1)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def rendezvous(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return rank 0's address and port.

    ``MASTER_ADDR`` and ``MASTER_PORT`` where set. In a Slurm step: its first node, where task 0
    runs (srun's own host, which may be a login node, only without a node list), and a port in
    20000..29999, below Linux's ephemeral ports, derived from job and step.

    Raises:
        ConfigError: neither is known, or the port is out of range.
    """
    address = environ.get("MASTER_ADDR")
    if address is None:
        nodes = environ.get("SLURM_STEP_NODELIST")
        address = first_host(nodes) if nodes else environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if "MASTER_PORT" in environ:
        port = _number(environ, "MASTER_PORT", "the launcher")
    elif "SLURM_JOB_ID" in environ:
        job = _number(environ, "SLURM_JOB_ID", "srun")
        step = _number(environ, "SLURM_STEP_ID", "srun", 0)
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


def restart_count(environ: Mapping[str, str]) -> int:
    """Return how often the elastic agent has restarted this process; 0 without an agent."""
    return _number(environ, "TORCHELASTIC_RESTART_COUNT", "torchrun", 0)
