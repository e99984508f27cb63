from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from image_classification.distributed.lost_ranks import (
    describe_loss,
    lost_peer,
    missing_ranks,
    wait_for_all,
)

HOST = (
    "import sys, time, torch.distributed as d\n"
    "s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
    "print(s.port, flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def store() -> Iterator[dist.TCPStore]:
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(store: dist.TCPStore) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)


def test_rank_that_does_not_report_is_missing(store: dist.TCPStore) -> None:
    found: dict[int, list[int]] = {}

    def report(rank: int) -> None:
        found[rank] = missing_ranks(client(store), rank, 3, timeout_s=1.0)

    threads = [threading.Thread(target=report, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [1], 2: [1]}


def test_absent_ranks_are_known(store: dist.TCPStore) -> None:
    assert wait_for_all(store, 0, 3, timeout_s=0.3) == [1, 2]
    assert wait_for_all(client(store), 2, 3, timeout_s=0.3) == [1]
    assert wait_for_all(client(store), 1, 3, timeout_s=0.3) == []


def test_no_rank_is_missing_when_all_report(store: dist.TCPStore) -> None:
    others = threading.Thread(target=missing_ranks, args=(client(store), 1, 2))
    others.start()
    assert missing_ranks(store, 0, 2) == []
    others.join()


def test_store_of_a_stopped_process_means_rank_0_is_missing() -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert host.stdout is not None
        port = int(host.stdout.readline())
        kept = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        os.kill(host.pid, signal.SIGSTOP)
        assert missing_ranks(kept, 1, 3, timeout_s=0.5) == [0]
    finally:
        # The thread that asked gets its answer, or an error, and ends.
        os.kill(host.pid, signal.SIGKILL)
        host.communicate()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/x/gloo/pair.cc:5] Connection closed by peer [::1]:2"), True),
        (RuntimeError("Gloo connectFullMesh failed with timed out connecting"), True),
        (RuntimeError("Timed out waiting 4000ms for recv operation to complete"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_of_a_lost_peer(error: Exception, lost: bool) -> None:
    assert lost_peer(error) is lost


def test_error_line_names_the_ranks() -> None:
    late = RuntimeError("Timed out waiting 4000ms for recv operation\nframe #0")
    gone = RuntimeError("Connection closed by peer\nframe #0")
    assert describe_loss(late, [2], 4.0).startswith("rank 2 did not answer within 4 s")
    assert describe_loss(gone, [1, 2], 4.0).startswith("lost contact with ranks 1, 2")
    everyone = describe_loss(gone, [], 4.0)
    assert "Connection closed by peer" in everyone and "\n" not in everyone
