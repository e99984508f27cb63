"""Which ranks are missing, at the start or when a collective fails, in words."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

# A rank that lives meets the same failure as this one: at once where a connection broke in the
# middle of a collective, at the latest when its own part of the step is done.
_PATIENCE_S = 3.0
_POLL_S = 0.05

_SIGNS = (
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
_SIGNS_OF_TIME = ("timed out", "timeout")


def lost_peer(error: BaseException) -> bool:
    """Return whether ``error`` says that another rank has gone or does not answer.

    Gloo raises plain RuntimeErrors, known by their text alone.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def missing_ranks(
    store: Store, rank: int, world_size: int, patience_s: float = _PATIENCE_S
) -> list[int]:
    """Return the ranks that do not report a failed collective within ``patience_s``.

    Every rank that meets one calls this: it leaves its mark in ``store`` and looks for the
    others'. A rank that is dead, stopped or hanging leaves none. Where the store itself does not
    answer, the rank that keeps it is gone or stopped: that is rank 0.
    """
    missing = {r for r in range(world_size) if r != rank}
    answered = threading.Event()

    def look() -> None:
        try:
            store.set_timeout(timedelta(seconds=patience_s))
            store.set(_mark(rank), "1")
            deadline = time.monotonic() + patience_s
            while missing and time.monotonic() < deadline:
                missing.difference_update([r for r in missing if store.check([_mark(r)])])
                answered.set()
                time.sleep(_POLL_S)
        except (dist.DistError, RuntimeError):
            answered.clear()

    # A store kept by a stopped process takes questions and never answers.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(patience_s + 1.0)
    if not answered.is_set():
        return [0] if rank != 0 else []
    return sorted(missing)


def wait_for_all(store: Store, rank: int, world_size: int, timeout_s: float) -> list[int]:
    """Wait until every rank has called this; return those that have not within ``timeout_s``.

    Raises:
        torch.distributed.DistError: the store cannot be reached.
    """
    store.set(_arrival(rank), "1")
    try:
        store.wait([_arrival(r) for r in range(world_size)], timedelta(seconds=timeout_s))
    except dist.DistStoreError:
        return [r for r in range(world_size) if not store.check([_arrival(r)])]
    return []


def _arrival(rank: int) -> str:
    return f"image_classification/here/{rank}"


def _mark(rank: int) -> str:
    return f"image_classification/lost/{rank}"


def name_ranks(ranks: Sequence[int]) -> str:
    """Return ``rank 2`` or ``ranks 1, 2``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def describe_loss(error: BaseException, missing: Sequence[int], timeout_s: float) -> str:
    """Return one line on the failed collective: who is missing and what it may be."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not missing:
        return f"a collective failed on this rank and on all others: {first_line}"
    who = name_ranks(missing)
    if any(sign in str(error).lower() for sign in _SIGNS_OF_TIME):
        return f"{who} did not answer within {timeout_s:g} s: stopped, hanging or cut off"
    return f"lost contact with {who}; see its own error"
