"""Averaging gradients over ranks: what DistributedDataParallel is told."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from image_classification.config.schema import RunConfig

_HOOKS = {
    "fp16": default_hooks.fp16_compress_hook,
    "bf16": default_hooks.bf16_compress_hook,
}


def static_graph_allowed(config: RunConfig) -> bool:
    """Return whether DDP may take every step's graph for the same.

    The networks here use every parameter in every step. With accumulation the reducer's own
    assertion fails in the first ``no_sync`` (torch 2.10), and torch.compile splits the graph at
    DDP's buckets by itself.
    """
    return config.batch.accumulation == 1 and not config.model.compile


def data_parallel(
    model: nn.Module, config: RunConfig, device: torch.device
) -> DistributedDataParallel:
    """Wrap ``model`` (on ``device``) so that gradients are averaged over all ranks.

    With ``optim.gradient_compression`` they travel as float16 or bfloat16, halving the traffic.
    """
    ddp = DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index],
        # Rank 0's BN statistics are broadcast before evaluation and saving instead of
        # before every step; training-mode results do not depend on them.
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=static_graph_allowed(config),
    )
    compression = config.optim.gradient_compression
    if compression != "none":
        ddp.register_comm_hook(None, _HOOKS[compression])
    return ddp
