"""Started once per rank by test_collectives.py: use the process group and print the results."""

import json
import os

import torch
from torch import nn

from image_classification.distributed.collectives import (
    AnyRank,
    agree_max,
    all_reduce_sum,
    barrier,
    broadcast_module_state,
    broadcast_text,
    gather_text,
)
from image_classification.distributed.launcher_env import detect_world
from image_classification.distributed.world import control_group, process_group

world = detect_world(os.environ)
assert world is not None
rank = world.rank

convolution = nn.Conv2d(2, 3, 3)
model = nn.Sequential(convolution, nn.BatchNorm2d(3))
model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
with torch.no_grad():
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + 10 * rank)

with process_group(world, "gloo", timeout_s=60.0):
    counts = torch.tensor([2**40 + rank, rank], dtype=torch.int64)
    summed = all_reduce_sum(counts)
    broadcast_module_state(model)
    expected = [torch.arange(t.numel()).view(t.shape) for t in model.state_dict().values()]
    with AnyRank() as any_rank:
        flags = [any_rank(rank == 1 and call == 0) for call in range(3)]
    seen = {
        "sum": summed.tolist(),
        "input_kept": counts.tolist() == [2**40 + rank, rank],
        "max": agree_max(rank * 7),
        "texts": gather_text("ä\n" * (1 + 3 * rank)),
        "text": broadcast_text(f"from rank {rank}"),
        "flags": flags,
        "state_is_rank_0s": all(
            torch.equal(t, e.to(t.dtype))
            for t, e in zip(model.state_dict().values(), expected, strict=True)
        ),
        "channels_last": convolution.weight.is_contiguous(memory_format=torch.channels_last),
        "port": os.environ["MASTER_PORT"],
    }
    barrier()
seen["left"] = control_group() is None and not torch.distributed.is_initialized()
print(json.dumps(seen))
