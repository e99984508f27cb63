"""Started once per rank by test_build.py: short training curves in several settings."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from image_classification import models
from image_classification.config.resolve import resolve
from image_classification.engine import build
from image_classification.models import resnet

rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if world_size > 2:
    # Of full width, the gradients fill several of DDP's buckets, whose layout matters here.
    resnet.STEM_CHANNELS = 64
DEVICE = torch.device("cpu")
# Few steps: batch normalization over four images soon amplifies any difference.
STEPS = 3
CONFIG = resolve("resnet18", "FP32", "convergence", "CPU", data="synthetic")
dist.init_process_group("gloo")


def curve(
    compression: str = "none", accumulation: int = 1, static: bool = True, rebuild_at: int = 0
) -> dict[str, object]:
    config = replace(
        CONFIG,
        optim=replace(CONFIG.optim, gradient_compression=compression),
        batch=replace(CONFIG.batch, accumulation=accumulation),
    )
    torch.manual_seed(0)
    model = models.build("resnet18", 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9)
    allowed, never = build.static_graph_allowed, lambda _: False
    losses = []
    for step in range(STEPS):
        if step in (0, rebuild_at):
            with patch.object(build, "static_graph_allowed", allowed if static else never):
                ddp = build.data_parallel(model, config, DEVICE)
        random = torch.Generator().manual_seed(step * world_size + rank)
        for micro in range(accumulation):
            images = torch.randn(4, 3, 32, 32, generator=random)
            labels = torch.randint(0, 3, (4,), generator=random)
            with nullcontext() if micro == accumulation - 1 else ddp.no_sync():
                loss = cross_entropy(ddp(images), labels)
                (loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return {"losses": losses, "static_graph": ddp.static_graph}


found = {"static": curve()}
if world_size == 2:
    found["dynamic"] = curve(static=False)
    found["fp16"], found["bf16"] = curve("fp16"), curve("bf16")
    found["accumulated"] = curve(accumulation=2)
else:
    found["rebuilt"] = curve(rebuild_at=2)
dist.destroy_process_group()
print(json.dumps(found))
