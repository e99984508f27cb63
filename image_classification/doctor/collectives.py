"""Checks of collectives: a real all_reduce over several processes, its latency and bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from image_classification.doctor.report import CheckResult, fail, ok, warn

NUM_BYTES = 64 * 2**20
_REPEATS = 5
_TIMEOUT_S = 30.0
_MIN_NCCL_MB_PER_S = 1000.0

REMEDIES = {
    "gloo": "set GLOO_SOCKET_IFNAME to a network interface (lo on one machine), and make sure that "
    "the name of this host resolves (/etc/hosts)",
    "nccl": "run with NCCL_DEBUG=INFO to see why; give the container shared memory (--ipc=host) "
    "and --ulimit memlock=-1, or try NCCL_P2P_DISABLE=1",
}
"""What to try if processes cannot reach each other."""


@dataclass(frozen=True)
class AllReduce:
    """Medians of one rank: small_s, of 4 bytes; large_s, of ``num_bytes``."""

    small_s: float
    large_s: float
    num_bytes: int
    is_correct: bool


def all_reduce(
    rank: int, world_size: int, backend: str, store_file: str, num_bytes: int = NUM_BYTES
) -> AllReduce:
    """Probe: sum tensors over ``world_size`` processes; with NCCL, rank N uses GPU N.

    store_file: a path that all ranks share and that does not exist yet.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)

    def timed(tensor: torch.Tensor) -> float:
        dist.barrier()
        start_s = time.perf_counter()
        dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start_s

    dist.init_process_group(
        backend,
        init_method=f"file://{store_file}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=_TIMEOUT_S),
        device_id=device if backend == "nccl" else None,
    )
    try:
        small = torch.zeros(1, device=device)
        large = torch.full((num_bytes // 4,), float(rank + 1), device=device)
        timed(large)  # the first connects the processes
        is_correct = bool((large == world_size * (world_size + 1) / 2).all())
        large.zero_()
        return AllReduce(
            small_s=statistics.median(timed(small) for _ in range(_REPEATS)),
            large_s=statistics.median(timed(large) for _ in range(_REPEATS)),
            num_bytes=num_bytes,
            is_correct=is_correct,
        )
    finally:
        dist.destroy_process_group()


def check_collective(name: str, measured: Sequence[AllReduce], devices: str) -> CheckResult:
    """Judge the measurements of all ranks by the slowest. name: the backend. devices: in words."""
    small_s = max(m.small_s for m in measured)
    large_s = max(m.large_s for m in measured)
    num_bytes = measured[0].num_bytes
    mb_per_s = num_bytes / large_s / 1e6
    found = (
        f"all_reduce over {len(measured)} {devices}: 4 bytes {1000 * small_s:.2f} ms, "
        f"{num_bytes / 2**20:g} MiB {1000 * large_s:.1f} ms, {mb_per_s:,.0f} MB/s"
    )
    if not all(m.is_correct for m in measured):
        return fail(name, f"{found}, and the sum is wrong", REMEDIES[name])
    if name == "nccl" and mb_per_s < _MIN_NCCL_MB_PER_S:
        remedy = (
            "see how the GPUs are connected (nvidia-smi topo -m) and which path NCCL uses "
            "(NCCL_DEBUG=INFO); give the container shared memory (--ipc=host)"
        )
        return warn(name, found, remedy)
    return ok(name, found)
