"""Collectives in a world of one, and over gloo on two ranks started as by torchrun and Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification.core.types import WorldInfo
from image_classification.distributed.collectives import (
    AnyRank,
    agree_max,
    all_reduce_sum,
    barrier,
    broadcast_module_state,
    broadcast_text,
    gather_text,
)
from image_classification.distributed.world import control_group, process_group
from tests.support.jobs import Jobs, free_port
from tests.support.ranks import run_ranks

SCRIPT = Path(__file__).with_name("collective_ranks.py")


def test_collectives_in_a_world_of_one() -> None:
    with process_group(WorldInfo(), "gloo", timeout_s=1.0):
        assert control_group() is None
        assert not torch.distributed.is_initialized()
        sums = torch.tensor([1, 2])
        assert all_reduce_sum(sums) is sums
        assert agree_max(3) == 3
        assert (broadcast_text("a"), gather_text("b")) == ("a", ["b"])
        assert AnyRank()(True)
        barrier()
        model = nn.Linear(2, 2)
        weight = model.weight.detach().clone()
        broadcast_module_state(model)
        assert torch.equal(model.weight, weight)


def slurm_environ(rank: int, job: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_collectives_of_two_ranks(jobs: Jobs, launcher: str) -> None:
    job = free_port()
    environs = None
    if launcher == "slurm":
        environs = [slurm_environ(rank, job) for rank in range(2)]
    for seen in run_ranks(jobs, SCRIPT, 2, environs=environs):
        assert seen["sum"] == [2**41 + 1, 1]  # exact: beyond float32's integers
        assert seen["input_kept"] and seen["state_is_rank_0s"] and seen["channels_last"]
        assert seen["max"] == 7
        assert seen["texts"] == ["ä\n", "ä\n" * 4]
        assert seen["text"] == "from rank 0"
        assert seen["flags"] == [False, True, False]  # rank 1's flag, one call late
        assert seen["left"]
        if launcher == "slurm":
            assert seen["port"] == str(20_000 + job * 31 % 10_000)
