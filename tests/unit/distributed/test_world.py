"""Joining the process group, and naming the ranks that are missing from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.distributed.world import (
    describe_loss,
    interface_towards,
    is_lost_peer,
    missing_ranks,
    process_group,
    wait_for_all,
)
from tests.support.jobs import free_port

STORE_HOST = (
    "import sys, torch.distributed as d\n"
    "s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
    "print(s.port, flush=True)\n"
    "sys.stdin.read()\n"
)


def test_missing_rank_0_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    world = WorldInfo(rank=1, local_rank=1, world_size=2, local_world_size=2)
    with (
        pytest.raises(DeviceError, match="rank 1 of 2 could not join rank 0 at 127"),
        process_group(world, "gloo", timeout_s=1.0),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are read as Linux has them")
def test_network_interface_towards_a_host() -> None:
    assert interface_towards("127.0.0.1", 29500) == "lo"
    assert interface_towards("no-such-host.invalid", 29500) is None


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(store: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)


def test_wait_for_all_returns_the_absent_ranks(store: TCPStore) -> None:
    assert wait_for_all(store, 0, 3, timeout_s=0.3) == [1, 2]
    assert wait_for_all(client(store), 2, 3, timeout_s=0.3) == [1]
    assert wait_for_all(client(store), 1, 3, timeout_s=0.3) == []


@pytest.mark.parametrize(("reporting", "missing"), [((0, 2), [1]), ((0, 1, 2), [])])
def test_ranks_that_do_not_report_are_missing(
    store: TCPStore, reporting: tuple[int, ...], missing: list[int]
) -> None:
    found: dict[int, list[int]] = {}

    def report(rank: int) -> None:
        found[rank] = missing_ranks(client(store), rank, 3, timeout_s=1.0)

    threads = [threading.Thread(target=report, args=(rank,)) for rank in reporting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(reporting, missing)


@pytest.mark.slow
def test_rank_0_is_missing_if_the_store_does_not_answer() -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", STORE_HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert host.stdout is not None
        port = int(host.stdout.readline())
        store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        os.kill(host.pid, signal.SIGSTOP)
        assert missing_ranks(store, 1, 3, timeout_s=0.5) == [0]
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
    assert is_lost_peer(error) is lost


def test_error_line_names_the_missing_ranks() -> None:
    late = RuntimeError("Timed out waiting 4000ms for recv operation\nframe #0")
    gone = RuntimeError("Connection closed by peer\nframe #0")
    assert describe_loss(late, [2], 4.0).startswith("rank 2 did not answer within 4 s")
    assert describe_loss(gone, [1, 2], 4.0).startswith("lost contact with ranks 1, 2")
    everyone = describe_loss(gone, [], 4.0)
    assert "Connection closed by peer" in everyone and "\n" not in everyone
