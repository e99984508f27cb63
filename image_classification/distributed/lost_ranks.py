"""Find out which ranks are missing, at the start or after a failed collective."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

# A running rank meets the same failure: at once where a connection broke within a collective,
# otherwise when it reaches the collective itself.
_REPORT_TIMEOUT_S = 3.0
_POLL_S = 0.05

_LOST_PEER_TEXTS = (
    "Application timeout caused pair closure",
    "Connect timeout ",
    "Connection closed by peer",
    "Connection reset by peer",
    "Gloo",
    "Read timeout ",
    "Socket closed",
    "Timed out waiting",
    "Write timeout ",
    "gloo",
)
_TIMEOUT_TEXTS = ("timed out", "timeout")


def lost_peer(error: BaseException) -> bool:
    """Return whether ``error`` means that another rank has ended or does not answer.

    Gloo raises plain RuntimeErrors, which only their text distinguishes.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER_TEXTS)


def missing_ranks(
    store: Store, rank: int, world_size: int, timeout_s: float = _REPORT_TIMEOUT_S
) -> list[int]:
    """Return the ranks that do not report a failed collective within ``timeout_s``.

    Every rank whose collective failed calls this: it sets its key in ``store`` and looks for the
    others'. A rank that is dead, stopped or hanging sets none. If the store does not answer, its
    host is dead or stopped: rank 0.
    """
    missing = {r for r in range(world_size) if r != rank}
    answered = threading.Event()

    def collect() -> None:
        try:
            store.set_timeout(timedelta(seconds=timeout_s))
            store.set(_failed_key(rank), "1")
            deadline = time.monotonic() + timeout_s
            while missing and time.monotonic() < deadline:
                missing.difference_update([r for r in missing if store.check([_failed_key(r)])])
                answered.set()
                time.sleep(_POLL_S)
        except (dist.DistError, RuntimeError):
            answered.clear()

    # The store of a stopped process accepts requests and never answers.
    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(timeout_s + 1.0)
    if not answered.is_set():
        return [0] if rank != 0 else []
    return sorted(missing)


def wait_for_all(store: Store, rank: int, world_size: int, timeout_s: float) -> list[int]:
    """Wait until every rank has called this; return those that have not within ``timeout_s``.

    Raises:
        torch.distributed.DistError: the store cannot be reached.
    """
    store.set(_arrived_key(rank), "1")
    try:
        store.wait([_arrived_key(r) for r in range(world_size)], timedelta(seconds=timeout_s))
    except dist.DistStoreError:
        return [r for r in range(world_size) if not store.check([_arrived_key(r)])]
    return []


def _arrived_key(rank: int) -> str:
    return f"image_classification/here/{rank}"


def _failed_key(rank: int) -> str:
    return f"image_classification/lost/{rank}"


def name_ranks(ranks: Sequence[int]) -> str:
    """Return ``rank 2`` or ``ranks 1, 2``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def describe_loss(error: BaseException, missing: Sequence[int], timeout_s: float) -> str:
    """Return one line on the failed collective: the missing ranks and the likely cause."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not missing:
        return f"a collective failed on this rank and on all others: {first_line}"
    who = name_ranks(missing)
    if any(text in str(error).lower() for text in _TIMEOUT_TEXTS):
        return f"{who} did not answer within {timeout_s:g} s: stopped, hanging or cut off"
    return f"lost contact with {who}; see its own error"
