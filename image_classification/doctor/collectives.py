"""Checks that processes reach one another: a real all_reduce, its time and bandwidth."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from datetime import timedelta

from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    warn,
)

NUM_BYTES = 64 * 2**20
_REPEATS = 5
_SLOW_NCCL_MB_PER_S = 1000.0


@dataclass(frozen=True)
class AllReduce:
    """Medians of one rank. round_trip_s: of 4 bytes. large_s: of ``num_bytes``."""

    round_trip_s: float
    large_s: float
    num_bytes: int
    is_right: bool


def all_reduce(
    rank: int,
    world_size: int,
    backend: str,
    meeting_file: str,
    limit_s: float,
    num_bytes: int = NUM_BYTES,
) -> AllReduce:
    """Join ``world_size`` processes and sum tensors over them; rank N computes on GPU N on NCCL.

    meeting_file: a path all ranks see and none has written yet. limit_s: for each collective.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)

    def timed(tensor: torch.Tensor) -> float:
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    dist.init_process_group(
        backend,
        init_method=f"file://{meeting_file}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=limit_s),
        device_id=device if backend == "nccl" else None,
    )
    try:
        small = torch.zeros(1, device=device)
        large = torch.full((num_bytes // 4,), float(rank + 1), device=device)
        timed(large)  # connections are made at the first
        is_right = bool((large == world_size * (world_size + 1) / 2).all())
        large.zero_()
        return AllReduce(
            round_trip_s=statistics.median(timed(small) for _ in range(_REPEATS)),
            large_s=statistics.median(timed(large) for _ in range(_REPEATS)),
            num_bytes=num_bytes,
            is_right=is_right,
        )
    finally:
        dist.destroy_process_group()


def check_collective(name: str, measured: list[AllReduce], device: str) -> Check:
    """Judge the measurements of all ranks; the slowest rank's times count."""
    round_trip_s = max(m.round_trip_s for m in measured)
    large_s = max(m.large_s for m in measured)
    num_bytes = measured[0].num_bytes
    mb_per_s = num_bytes / large_s / 1e6
    found = (
        f"all_reduce over {len(measured)} {device}: 4 bytes {1000 * round_trip_s:.2f} ms, "
        f"{num_bytes / 2**20:g} MiB {1000 * large_s:.1f} ms, {mb_per_s:,.0f} MB/s"
    )
    if not all(m.is_right for m in measured):
        return fail(name, f"{found}, and the sum is wrong", collective_remedy(name))
    if name == "nccl" and mb_per_s < _SLOW_NCCL_MB_PER_S:
        return warn(
            name,
            found,
            "nvidia-smi topo -m shows how the GPUs are joined, NCCL_DEBUG=INFO which way NCCL "
            "takes; give the container shared memory (--ipc=host)",
        )
    return ok(name, found)


def collective_remedy(name: str) -> str:
    """Return what to try where processes do not reach one another."""
    if name == "nccl":
        return (
            "run with NCCL_DEBUG=INFO to see why; give the container shared memory (--ipc=host) "
            "and --ulimit memlock=-1, or try NCCL_P2P_DISABLE=1"
        )
    return (
        "set GLOO_SOCKET_IFNAME to a network interface (lo on one machine), and see that this "
        "host's name resolves (/etc/hosts)"
    )
