import pytest

from image_classification.core.errors import ConfigError
from image_classification.core.types import WorldInfo
from image_classification.distributed.launcher_env import (
    detect_world,
    first_host,
    rendezvous,
    restart_count,
)


def torchrun(rank: int, local_rank: int, world: int, local: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(local),
        "TORCHELASTIC_RUN_ID": "none",
    }


BATCH_SCRIPT = {  # of sbatch --nodes 2 --ntasks-per-node 8, before any srun
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "16",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
STEP = {
    **BATCH_SCRIPT,
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "dgx[003-004]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
ONE_TASK = {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
PMI = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
ENROOT = {"RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16"}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, None),
        ({"PATH": "/bin"}, None),
        (torchrun(9, 1, 16, 8), WorldInfo(9, 1, 16, 8, 2)),
        (torchrun(0, 0, 1, 1), WorldInfo()),
        (BATCH_SCRIPT, None),
        (STEP, WorldInfo(11, 3, 16, 8, 2)),
        (ONE_TASK, None),
        # salloc's interactive step: the job's tasks, one in the step.
        ({**BATCH_SCRIPT, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, None),
        # torchrun inside a Slurm step: the nearer launcher counts.
        ({**STEP, **torchrun(2, 2, 4, 4)}, WorldInfo(2, 2, 4, 4, 1)),
        (OPEN_MPI, WorldInfo(5, 1, 8, 4, 2)),
        ({**STEP, **OPEN_MPI}, WorldInfo(5, 1, 8, 4, 2)),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}, None),
        (PMI, WorldInfo(3, 1, 4, 2, 2)),
        # srun --mpi=pmi2 sets PMI_* without local ranks; Slurm has them.
        ({**STEP, "PMI_RANK": "11", "PMI_SIZE": "16"}, WorldInfo(11, 3, 16, 8, 2)),
        # enroot's hook translates a step, without LOCAL_WORLD_SIZE.
        ({**STEP, **ENROOT}, WorldInfo(11, 3, 16, 8, 2)),
        ({**ONE_TASK, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, None),
    ],
)
def test_detect_world(environ: dict[str, str], world: WorldInfo | None) -> None:
    assert detect_world(environ) == world


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "2"}, "but RANK is not set"),
        (ENROOT, "LOCAL_WORLD_SIZE is not set"),
        ({**torchrun(0, 0, 2, 2), "RANK": "zero"}, "not a whole number"),
        (torchrun(2, 0, 2, 2), "contradict"),
        (torchrun(1, 2, 4, 2), "contradict"),
        (torchrun(0, 0, 4, 3), "contradict"),
        (torchrun(-1, 0, 2, 2), "contradict"),
        ({**STEP, "SLURM_NTASKS": "8"}, "contradicts"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "3"}, "evenly"),
        ({k: v for k, v in STEP.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is not set"),
        ({k: v for k, v in OPEN_MPI.items() if "LOCAL_SIZE" not in k}, "LOCAL_SIZE is not set"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "MPI_LOCALRANKID is not set"),
    ],
)
def test_incomplete_or_contradictory_environments(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        detect_world(environ)


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("dgx[003-010,012],login", "dgx003"),
        ("gpu[5,9]", "gpu5"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("n[1-3]-ib,n9", "n1-ib"),
    ],
)
def test_first_host(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


def test_rendezvous() -> None:
    assert rendezvous({"MASTER_ADDR": "h", "MASTER_PORT": "1234", **STEP}) == ("h", 1234)
    address, port = rendezvous(STEP)
    assert address == "dgx003" and 20_000 <= port < 30_000
    assert rendezvous({**STEP, "SLURM_PROCID": "0"}) == (address, port)
    assert rendezvous({**STEP, "SLURM_STEP_ID": "2"})[1] != port
    no_list = {k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"}
    assert rendezvous(no_list)[0] == "10.0.0.1"
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        rendezvous(OPEN_MPI)
    with pytest.raises(ConfigError, match="not a port"):
        rendezvous({"MASTER_ADDR": "h", "MASTER_PORT": "99999"})


def test_restart_count() -> None:
    assert restart_count({}) == 0
    assert restart_count({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2
    with pytest.raises(ConfigError, match="TORCHELASTIC_RESTART_COUNT"):
        restart_count({"TORCHELASTIC_RESTART_COUNT": "twice"})
