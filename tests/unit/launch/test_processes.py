"""The launcher and its agent around real processes, small ones that do not import torch."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.launch import processes
from image_classification.launch.processes import launch, nodes_from_environment

# Rank 1 of the first start does what argv says. With "deaf" its peer hears no SIGTERM, like a rank
# in the middle of a collective.
SCRIPT = """\
import json, os, pathlib, signal, sys, time
rank, count = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
place, what = pathlib.Path(sys.argv[1]), sys.argv[2]
(place / f"start-{count}-{rank}").touch()
if count > 0 and "always" not in sys.argv:
    (place / "why").write_text(os.environ["IMAGE_CLASSIFICATION_RESTART_REASON"])
    sys.exit(0)
if rank == 0:
    if "deaf" in sys.argv:
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
    """The script's path; what a launcher changes in its own process is put back."""
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
def test_a_lost_rank_is_started_again_and_its_deaf_peer_ended(
    script, small_config, tmp_path, capfd, monkeypatch, number, message
):
    def kill_and_see_it_dead(pid: int, number: int) -> None:
        killpg(pid, number)
        if number == signal.SIGKILL:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    # A rank the agent kills may be dead before its next line: it must still be told from its peer.
    killpg = os.killpg
    monkeypatch.setattr(os, "killpg", kill_and_see_it_dead)
    argv = [str(tmp_path), "signal", str(int(number)), "deaf"]
    assert launch(two_ranks(small_config, max_restarts=2), script, argv) == 0
    assert starts(tmp_path) == ["start-0-0", "start-0-1", "start-1-0", "start-1-1"]
    why = (tmp_path / "why").read_text()
    assert re.search(message, why), why
    assert "rank 1" in why and "restart 1 of at most 2" in why
    assert capfd.readouterr().err == f"warning: {why}\n"


@pytest.mark.slow
def test_restarts_come_to_an_end(script, small_config, tmp_path, capfd):
    argv = [str(tmp_path), "signal", "9", "always"]
    assert launch(two_ranks(small_config, max_restarts=1), script, argv) == 1
    assert len(starts(tmp_path)) == 4
    warning, error = capfd.readouterr().err.splitlines()
    assert "restart 1 of at most 1" in warning
    assert error.startswith("error: [rank 1] the process of rank 1")
    assert "start again with --resume auto" in error


@pytest.mark.slow
@pytest.mark.parametrize(("code", "kind"), [(2, "error"), (3, "error"), (75, "stopped")])
def test_what_would_end_the_same_way_is_not_tried_again(
    script, small_config, tmp_path, capfd, code, kind
):
    argv = [str(tmp_path), "code", str(code)]
    assert launch(two_ranks(small_config, max_restarts=2), script, argv) == code
    assert starts(tmp_path) == ["start-0-0", "start-0-1"]
    assert capfd.readouterr().err == f"{kind}: [rank 1] what went wrong\n"


def test_a_machine_alone_is_one_line(script, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_RENDEZVOUS_TIMEOUT_S", 1)
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("MASTER_PORT", str(nobody.getsockname()[1]))
        with pytest.raises(DeviceError, match="machine 1 of 2 could not meet the others"):
            launch(small_config(platform__num_nodes=2, batch__global=16), script, [])


def test_the_machines_are_told_apart_by_the_environment(small_config):
    platform = small_config(platform__num_nodes=2, batch__global=16).platform
    given = {"NODE_RANK": "1", "MASTER_ADDR": "first"}
    assert nodes_from_environment(platform, given) == (1, "first:29500")
    with pytest.raises(ConfigError, match="NODE_RANK=0,1"):
        nodes_from_environment(platform, {"NODE_RANK": "1"})
    assert nodes_from_environment(small_config().platform, {}) == (0, "127.0.0.1:0")
