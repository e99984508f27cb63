"""Two machines for real, as far as the network can tell: two namespaces, a cable between them.

Where none can be made, and in the long form, launch.py is started twice on the loopback as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults import ranks
from tests.faults.jobs import free_port

pytestmark = pytest.mark.slow


def no_namespaces() -> str:
    """Say why no network namespace can be made here; "" where one can."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return "network namespaces need root and iproute2's ip command"
    name = f"ic-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def listed() -> set[str]:
    """The names of this machine's network namespaces."""
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in told.stdout.splitlines()}


@pytest.fixture
def after_a_kill() -> Iterator[tuple[str, str]]:
    """Two namespaces: one left by a killed run, and one whose run still lives."""
    if why := no_namespaces():
        pytest.skip(why)
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, living = f"ic-{dead.pid}-0", f"ic-{os.getpid()}-1"
    for name in (left, living):
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield left, living
    for name in {left, living} & listed():
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def halves(small_arguments) -> list[str]:
    """Half the batch a device: one machine takes two micro-batches, two take one each."""
    changed = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    changed = [a.replace("schedule.epochs=3", "schedule.epochs=2") for a in changed]
    return [*changed, "--no-checkpoints"]


def assert_two_learnt_what_one_learns(halves, one, two) -> None:
    code, err = ranks.start(halves, one).finish()
    assert code == 0, err
    assert ranks.losses(two) == pytest.approx(ranks.losses(one), abs=1e-4)
    assert len(ranks.losses(two)) == 8
    assert ranks.records(two, "start")[0].values["world_size"] == 2


def test_two_machines_learn_what_one_learns(after_a_kill, halves, tmp_path):
    """Two machines with a cable between them learn what one learns; a killed run left its own."""
    two = tmp_path / "two"
    demo = subprocess.Popen(
        [str(ranks.ROOT / "scripts" / "two_nodes_demo.sh"), str(two), *halves],
        env=ranks.environment(PYTHON=sys.executable),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, err = demo.communicate(timeout=240)
    finally:
        # When time is up: the script removes its namespaces only if it is asked to end.
        demo.terminate()
        demo.wait()
    assert demo.returncode == 0, err
    assert_two_learnt_what_one_learns(halves, tmp_path / "one", two)
    left, living = after_a_kill
    assert left not in listed() and living in listed()
    assert not {f"ic-{demo.pid}-0", f"ic-{demo.pid}-1"} & listed()


def test_two_machines_that_are_one(full, halves, tmp_path):
    """launch.py started by hand for each of two machines learns what one machine learns."""
    if not (full or no_namespaces()):
        pytest.skip("the test with namespaces stands for it; part of the long form: FAULTS=full")
    two = tmp_path / "two"
    nodes = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = [ranks.start(halves, two, NODE_RANK=rank, **nodes) for rank in ("0", "1")]
    for code, err in [job.finish() for job in jobs]:
        assert code == 0, err
    assert_two_learnt_what_one_learns(halves, tmp_path / "one", two)
