import torch
from torch import nn

from image_classification.core.types import WorldInfo
from image_classification.distributed.world import (
    agree_max,
    all_reduce_sum,
    barrier,
    broadcast_module_state,
    control_group,
    destroy,
    process_group,
)


def test_world_of_one() -> None:
    with process_group(WorldInfo(), "gloo"):
        assert control_group() is None
        assert not torch.distributed.is_initialized()
        sums = torch.tensor([1, 2])
        assert all_reduce_sum(sums) is sums
        assert agree_max(3) == 3
        barrier()
        model = nn.Linear(2, 2)
        weight = model.weight.detach().clone()
        broadcast_module_state(model)
        assert torch.equal(model.weight, weight)
    destroy()  # twice is fine
