import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import image_classification
from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.distributed.world import init_process_group

SCRIPT = Path(__file__).with_name("world_ranks.py")
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "MPI_", "MASTER_", "TORCHELASTIC_")


def clean_environ() -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        keep.pop(key, None)
    root = str(Path(image_classification.__file__).parents[1])
    return {**keep, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def torchrun_environ(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def slurm_environ(rank: int, port: int) -> dict[str, str]:
    # The port follows from the job: 20000 + job * 31 % 10000.
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


@pytest.mark.slow
@pytest.mark.parametrize("environ", [torchrun_environ, slurm_environ], ids=["torchrun", "slurm"])
def test_two_ranks_over_gloo(environ: Callable[[int, int], dict[str, str]]) -> None:
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env={**clean_environ(), **environ(rank, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [p.communicate(timeout=120) for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    for (out, err), p in zip(outputs, ranks, strict=True):
        assert p.returncode == 0, err
        seen = json.loads(out.splitlines()[-1])
        assert seen["sum"] == [2**41 + 1, 1]  # exact: past float32's integers
        assert seen["input_kept"] and seen["state_is_rank_0s"] and seen["channels_last"]
        assert seen["max"] == 7
        assert seen["texts"] == ["ä\n", "ä\n" * 4]
        assert seen["left"]
        if environ is slurm_environ:
            assert seen["port"] == str(20_000 + port * 31 % 10_000)


def test_an_absent_rank_0_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    world = WorldInfo(rank=1, local_rank=1, world_size=2, local_world_size=2)
    with pytest.raises(DeviceError, match="rank 1 of 2 could not join rank 0 at 127"):
        init_process_group(world, "gloo", timeout_s=1.0)
