"""Two machines for real, as far as the network can tell: two namespaces, a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ranks

pytestmark = pytest.mark.slow


@pytest.fixture
def namespaces() -> None:
    """Skip where no network namespace can be made."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2's ip command")
    name = f"ic-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "delete", name], check=True)


def listed() -> set[str]:
    """The names of this machine's network namespaces."""
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in told.stdout.splitlines()}


@pytest.fixture
def after_a_kill(namespaces) -> Iterator[tuple[str, str]]:
    """Two namespaces: one left by a killed run, and one whose run still lives."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, living = f"ic-{dead.pid}-0", f"ic-{os.getpid()}-1"
    for name in (left, living):
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield left, living
    for name in {left, living} & listed():
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_two_machines_learn_what_one_learns(after_a_kill, small_arguments, tmp_path):
    before = listed()
    one, two = tmp_path / "one", tmp_path / "two"
    changed = [a.replace("batch.per_device=8", "batch.per_device=4") for a in small_arguments]
    changed = [a.replace("schedule.epochs=3", "schedule.epochs=2") for a in changed]
    changed.append("--no-checkpoints")
    code, err = ranks.start(changed, one).finish()
    assert code == 0, err
    demo = subprocess.run(
        [str(ranks.ROOT / "scripts" / "two_nodes_demo.sh"), str(two), *changed],
        env=ranks.environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    assert ranks.losses(two) == pytest.approx(ranks.losses(one), abs=1e-4)
    assert len(ranks.losses(two)) == 8
    assert ranks.records(two, "start")[0].values["world_size"] == 2
    left, living = after_a_kill
    assert left not in listed() and living in listed()
    assert listed() <= before
