"""Join two processes over gloo, started as torchrun and as Slurm start them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.distributed.world import init_process_group
from tests.support.jobs import free_port
from tests.support.ranks import run_ranks

SCRIPT = Path(__file__).with_name("world_ranks.py")


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
    for line in run_ranks(SCRIPT, 2, lambda rank: (), lambda rank: environ(rank, port)):
        seen = json.loads(line)
        assert seen["sum"] == [2**41 + 1, 1]  # exact: beyond float32's integers
        assert seen["input_kept"] and seen["state_is_rank_0s"] and seen["channels_last"]
        assert seen["max"] == 7
        assert seen["texts"] == ["ä\n", "ä\n" * 4]
        assert seen["left"]
        if environ is slurm_environ:
            assert seen["port"] == str(20_000 + port * 31 % 10_000)


def test_missing_rank_0_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    world = WorldInfo(rank=1, local_rank=1, world_size=2, local_world_size=2)
    with pytest.raises(DeviceError, match="rank 1 of 2 could not join rank 0 at 127"):
        init_process_group(world, "gloo", timeout_s=1.0)
