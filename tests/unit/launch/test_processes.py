"""The launcher and its agent with real, small processes that do not import torch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.launch import processes
from image_classification.launch.outcomes import Outcome
from image_classification.launch.processes import (
    ProcessEnds,
    exit_code,
    is_stopped,
    launch,
    nodes_from_environment,
    root_cause,
)

# Rank 1 of the first start does what argv says. With "ignore" the other rank ignores SIGTERM, like
# a rank in the middle of a collective.
SCRIPT = """\
import json, os, pathlib, signal, sys, time
rank, count = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
place, what = pathlib.Path(sys.argv[1]), sys.argv[2]
(place / f"start-{count}-{rank}").touch()
if count > 0 and "always" not in sys.argv:
    (place / "why").write_text(os.environ["IMAGE_CLASSIFICATION_RESTART_REASON"])
    sys.exit(0)
if rank == 0:
    if "ignore" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (place / f"ready-{count}").touch()
    time.sleep(100)
    sys.exit(0)
while not (place / f"ready-{count}").exists():
    time.sleep(0.01)
if what == "signal":
    os.kill(os.getpid(), int(sys.argv[3]))
    time.sleep(100)
code = int(sys.argv[3])
outcome = {"rank": rank, "code": code, "message": "what went wrong", "retry": False}
folder = pathlib.Path(os.environ["IMAGE_CLASSIFICATION_OUTCOMES"])
(folder / "rank-1.json").write_text(json.dumps(outcome))
sys.exit(code)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[str]:
    """The script's path; restores the signal handlers and environment that a launcher changes."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
    handlers = {number: signal.getsignal(number) for number in numbers}
    environ = dict(os.environ)
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    yield str(path)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environ)


def two_ranks(small_config, max_restarts=0):
    return small_config(
        platform__num_devices=2,
        batch__global=16,
        run__max_restarts=max_restarts,
        run__collective_timeout_s=1.0,
    )


def starts(place: Path) -> list[str]:
    return sorted(p.name for p in place.glob("start-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed by signal 9"),
        # A second at least; how much later it is noticed depends on the machine's load.
        (signal.SIGSTOP, r"had not run for [1-9]\d* s \(stopped\) and was killed"),
    ],
)
def test_lost_rank_is_restarted_and_other_rank_is_ended(
    script, small_config, tmp_path, capfd, monkeypatch, number, message
):
    def kill_and_wait(pid: int, number: int) -> None:
        killpg(pid, number)
        if number == signal.SIGKILL:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    # The killed rank must be recognized even if it dies at once.
    killpg = os.killpg
    monkeypatch.setattr(os, "killpg", kill_and_wait)
    argv = [str(tmp_path), "signal", str(int(number)), "ignore"]
    assert launch(two_ranks(small_config, max_restarts=2), (script, *argv)) == 0
    assert starts(tmp_path) == ["start-0-0", "start-0-1", "start-1-0", "start-1-1"]
    why = (tmp_path / "why").read_text()
    assert re.search(message, why), why
    assert "rank 1" in why and "restart 1 of at most 2" in why
    assert capfd.readouterr().err == f"warning: {why}\n"


@pytest.mark.slow
def test_restarts_are_limited(script, small_config, tmp_path, capfd):
    argv = [str(tmp_path), "signal", "9", "always"]
    assert launch(two_ranks(small_config, max_restarts=1), (script, *argv)) == 1
    assert len(starts(tmp_path)) == 4
    warning, error = capfd.readouterr().err.splitlines()
    assert "restart 1 of at most 1" in warning
    assert error.startswith("error: [rank 1] the process of rank 1")
    assert "start again with --resume auto" in error


@pytest.mark.slow
@pytest.mark.parametrize(("code", "kind"), [(2, "error"), (3, "error"), (75, "stopped")])
def test_final_errors_are_not_restarted(script, small_config, tmp_path, capfd, code, kind):
    argv = [str(tmp_path), "code", str(code)]
    assert launch(two_ranks(small_config, max_restarts=2), (script, *argv)) == code
    assert starts(tmp_path) == ["start-0-0", "start-0-1"]
    assert capfd.readouterr().err == f"{kind}: [rank 1] what went wrong\n"


def test_missing_machine_is_one_line(script, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_RENDEZVOUS_TIMEOUT_S", 1)
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, but not listening
        monkeypatch.setenv("MASTER_PORT", str(silent.getsockname()[1]))
        with pytest.raises(DeviceError, match="machine 1 of 2 could not connect to the others"):
            launch(small_config(platform__num_nodes=2, batch__global=16), (script,))


def test_node_rank_and_address_come_from_the_environment(small_config):
    platform = small_config(platform__num_nodes=2, batch__global=16).platform
    given = {"NODE_RANK": "1", "MASTER_ADDR": "first"}
    assert nodes_from_environment(platform, given) == (1, "first:29500")
    with pytest.raises(ConfigError, match="NODE_RANK=0,1"):
        nodes_from_environment(platform, {"NODE_RANK": "1"})
    assert nodes_from_environment(small_config().platform, {}) == (0, "127.0.0.1:0")


LOST = Outcome(0, 1, "lost contact with rank 1; see its own error", retry=True)


@pytest.mark.parametrize(
    ("ends", "outcomes", "rank", "code", "message", "retry"),
    [
        # A user error explains the ranks that lost contact with its rank.
        (ProcessEnds({0: 1, 1: 2}), [Outcome(1, 2, "bad image"), LOST], 1, 2, "bad image", False),
        (ProcessEnds({0: 1, 1: -9}), [LOST], 1, 1, "killed by signal 9", True),
        (ProcessEnds({0: 1, 1: 1}), [LOST], 1, 1, "ended with exit code 1", True),
        (ProcessEnds({0: 1}), [LOST], 0, 1, "lost contact with rank 1", True),
        (ProcessEnds({1: -9}, {1: 61.0}), [LOST], 1, 1, "had not run for 61 s", True),
        # The agent's SIGKILL to a hanging rank is not the cause.
        (ProcessEnds({0: 1}, {1: 3.0}), [LOST], 0, 1, "lost contact with rank 1", True),
        (ProcessEnds({0: 3, 1: 3}), [Outcome(0, 3, "diverged")], 0, 3, "diverged", False),
    ],
)
def test_root_cause(ends, outcomes, rank, code, message, retry):
    cause = root_cause(ends, outcomes)
    assert (cause.rank, cause.code, cause.retry) == (rank, code, retry)
    assert message in cause.message


def test_child_state_is_read_without_reaping():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert exit_code(child.pid) is None and not is_stopped(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(child.pid))
        os.kill(child.pid, signal.SIGCONT)
        wait_until(lambda: not is_stopped(child.pid))
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: exit_code(child.pid) is not None)
        assert exit_code(child.pid) == exit_code(child.pid) == -9
    finally:
        child.kill()
        assert child.wait() == -9
    assert exit_code(child.pid) is None  # reaped


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
