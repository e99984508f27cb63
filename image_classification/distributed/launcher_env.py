"""Read from the environment which launcher started this process: torchrun, MPI or Slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping

from image_classification.core.errors import ConfigError
from image_classification.core.types import WorldInfo

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def detect_world(environ: Mapping[str, str]) -> WorldInfo | None:
    """Return this process's ranks as its launcher set them; None where there is no launcher.

    Checked in this order: torchrun, Open MPI's mpirun, PMI (MPICH, Intel MPI), Slurm's srun, so
    that torchrun or mpirun inside a Slurm job take precedence. Slurm and MPI steps of one task do
    not count, so that ``srun -n1 launch.py`` starts the platform's processes itself. Nor does a
    batch script, which has Slurm's job variables but not those of a step.

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
    # Container hooks such as enroot's set torchrun's variables from a Slurm step, but without
    # LOCAL_WORLD_SIZE, and also for a step of one task.
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


def restart_count(environ: Mapping[str, str]) -> int:
    """Return how often the elastic agent has restarted this process; 0 without an agent.

    Raises:
        ConfigError: the agent's variable is not a number.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in environ:
        return 0
    return _number(environ, "TORCHELASTIC_RESTART_COUNT", "torchrun")
