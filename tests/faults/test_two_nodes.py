"""Training on two nodes: two network namespaces with a virtual Ethernet link between them.

Where no namespace can be made, and in the long form, launch.py is also started twice on the
loopback interface.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import (
    FORK_SERVER,
    ROOT,
    Jobs,
    free_port,
    job_environ,
    read_losses,
    read_records,
)


def no_namespaces() -> str:
    """Return why no network namespace can be made here; "" where one can."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return "network namespaces need root and iproute2's ip command"
    name = f"ic-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def namespaces() -> set[str]:
    """Return the names of this machine's network namespaces."""
    command = ["ip", "netns", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines()}


@pytest.fixture
def leftover_namespaces() -> Iterator[tuple[str, str]]:
    """Make two namespaces: one of a dead process, one of a running process."""
    if why := no_namespaces():
        pytest.skip(why)
    dead = subprocess.Popen(["true"])
    dead.wait()
    leftover, in_use = f"ic-{dead.pid}-0", f"ic-{os.getpid()}-1"
    for name in (leftover, in_use):
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield leftover, in_use
    for name in {leftover, in_use} & namespaces():
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def arguments(small_arguments: list[str]) -> list[str]:
    """Return a run of two micro-batches per step on one node, of one on each of two nodes."""
    changed = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    changed = [a.replace("schedule.epochs=3", "schedule.epochs=2") for a in changed]
    return [*changed, "--no-checkpoints"]


@pytest.fixture
def jobs(tmp_path, full, stem_channels) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path, fresh=full, launcher=True, stem_channels=stem_channels)
    yield jobs
    jobs.close()


def assert_equals_one_node(jobs, arguments, two_nodes) -> None:
    one_node = two_nodes.with_name("one-node")
    jobs.run(arguments, one_node)
    assert read_losses(two_nodes) == pytest.approx(read_losses(one_node), abs=1e-4)
    assert len(read_losses(two_nodes)) == 8
    assert read_records(two_nodes, "start")[0].values["world_size"] == 2


def test_two_nodes_in_namespaces(
    full, stem_channels, leftover_namespaces, jobs, arguments, tmp_path
):
    """Two nodes train like one; the script removes namespaces that a killed run left."""
    folder = tmp_path / "two-nodes"
    python, variables = Path(sys.executable), {}
    if not full:
        # One import per node: the launcher's rank is a fork of it.
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {FORK_SERVER} "$@"\n')
        python.chmod(0o755)
        variables = {"STEM_CHANNELS": str(stem_channels)}
    demo = subprocess.Popen(
        [str(ROOT / "scripts" / "two_nodes_demo.sh"), str(folder), *arguments],
        env=job_environ(PYTHON=str(python), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, err = demo.communicate(timeout=240)
    finally:
        # The script removes its namespaces only if it is terminated, not if it is killed.
        demo.terminate()
        demo.wait()
    assert demo.returncode == 0, err
    assert_equals_one_node(jobs, arguments, folder)
    leftover, in_use = leftover_namespaces
    assert leftover not in namespaces() and in_use in namespaces()
    assert not {f"ic-{demo.pid}-0", f"ic-{demo.pid}-1"} & namespaces()


def test_two_nodes_on_loopback(full, jobs, arguments, tmp_path):
    """launch.py is started by hand for each of two nodes on one machine."""
    if not (full or no_namespaces()):
        pytest.skip("covered by the test with namespaces; part of the long form: FAULTS=full")
    folder = tmp_path / "two-nodes"
    nodes = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        jobs.start(arguments, folder, environ={"NODE_RANK": rank, **nodes}) for rank in ("0", "1")
    ]
    for job in started:
        assert job.wait() == 0, job.stderr
    assert_equals_one_node(jobs, arguments, folder)
