"""Files exchanged by launcher and processes; ranks end when their launcher has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image_classification.launch.outcomes import (
    OUTCOME_FOLDER,
    Outcome,
    keep_for_restart,
    kept_for_restart,
    read_outcomes,
    report_outcome,
    started_by_us,
)

ROOT = Path(__file__).parents[3]
# A launcher that starts one rank and waits. The rank calls end_with_launcher, then waits.
LAUNCHER = """\
import os, subprocess, sys, time
from image_classification.launch.outcomes import keep_for_restart
keep_for_restart("launcher", sys.argv[1] if len(sys.argv) > 1 else str(os.getpid()))
rank = (
    "import time; from image_classification.launch.outcomes import end_with_launcher\\n"
    "end_with_launcher(); print('on', flush=True); time.sleep(100)"
)
child = subprocess.Popen([sys.executable, "-c", rank], stdout=subprocess.PIPE, text=True)
line = child.stdout.readline().strip()
print(child.pid, line, child.wait() if not line else "", flush=True)
time.sleep(100 if line else 0)
"""


def test_outcome_that_explains_the_others_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(OUTCOME_FOLDER, str(tmp_path))
    outcomes = [
        Outcome(0, 1, "lost contact", retry=True),
        Outcome(1, 75, "SIGTERM received"),
        Outcome(2, 3, "diverged"),
        Outcome(3, 2, "no such folder"),
    ]
    for outcome in outcomes:
        assert report_outcome(outcome)
    assert read_outcomes(tmp_path) == outcomes[::-1]


def test_first_value_is_kept_for_restarts(tmp_path, monkeypatch):
    monkeypatch.delenv(OUTCOME_FOLDER, raising=False)
    keep_for_restart("workspace", "lost")  # no launcher, so nothing is kept
    assert not report_outcome(Outcome(0, 2, "x"))
    assert not started_by_us() and kept_for_restart("workspace") is None
    monkeypatch.setenv(OUTCOME_FOLDER, str(tmp_path))
    assert started_by_us() and kept_for_restart("workspace") is None
    keep_for_restart("workspace", "first")
    keep_for_restart("workspace", "second")
    assert kept_for_restart("workspace") == "first"
    assert read_outcomes(tmp_path) == []


def _launcher(folder: Path, *argv: str) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCHELASTIC_RUN_ID": "test",
        OUTCOME_FOLDER: str(folder),
    }
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *argv], env=environ, stdout=subprocess.PIPE, text=True
    )


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel")
def test_rank_ends_with_its_launcher(tmp_path):
    launcher = _launcher(tmp_path)
    try:
        assert launcher.stdout is not None
        pid, word = launcher.stdout.readline().split()
        assert word == "on" and _is_running(int(pid))
    finally:
        launcher.kill()
        launcher.communicate()
    deadline = time.monotonic() + 10
    while _is_running(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(int(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel")
def test_rank_whose_launcher_has_ended_exits_at_once(tmp_path):
    launcher = _launcher(tmp_path, "1")  # the pid kept is not the rank's parent
    out, _ = launcher.communicate(timeout=60)
    assert out.split()[1:] == ["1"]  # nothing printed by the rank, exit code 1
