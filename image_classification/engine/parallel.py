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


# Two, as batch normalization needs more than one value a channel where 64 px have become 1.
_PROBE_IMAGES, _PROBE_SIZE_PX = 2, 64


def static_graph_allowed(config: RunConfig) -> bool:
    """Return whether DDP may take every step's graph for the same.

    The networks here use every parameter in every step. With accumulation the reducer's own
    assertion fails in the first ``no_sync`` (torch 2.10), and torch.compile splits the graph at
    DDP's buckets by itself.
    """
    return config.batch.accumulation == 1 and not config.model.compile


def _settle_buckets(ddp: DistributedDataParallel, model: nn.Module, device: torch.device) -> None:
    """Take two backward passes on zeros, after which DDP keeps the layout of its buckets.

    DDP lays them out anew after its first step (with a static graph: its second). Three ranks or
    more add in an order that follows from the layout, so that a resumed run would round its first
    steps as no other and not be the run it continues. Weights and buffers stay as they are.
    """
    kept = [buffer.clone() for buffer in model.buffers()]
    training = model.training
    model.train()
    images = torch.zeros(_PROBE_IMAGES, 3, _PROBE_SIZE_PX, _PROBE_SIZE_PX, device=device)
    for _ in range(2):
        ddp(images).sum().backward()
    model.train(training)
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)


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
    if not config.model.compile:
        _settle_buckets(ddp, model, device)
    compression = config.optim.gradient_compression
    if compression != "none":
        ddp.register_comm_hook(None, _HOOKS[compression])
    return ddp
