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
# A launcher that starts one rank and waits. The rank asks to end with it, then does nothing.
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


def test_the_end_that_explains_the_others_comes_first(tmp_path):
    environ = {OUTCOME_FOLDER: str(tmp_path)}
    ends = [
        Outcome(0, 1, "lost contact", retry=True),
        Outcome(1, 75, "SIGTERM came"),
        Outcome(2, 3, "diverged"),
        Outcome(3, 2, "no such folder"),
    ]
    for end in ends:
        assert report_outcome(end, environ)
    assert read_outcomes(tmp_path) == ends[::-1]


def test_what_is_remembered_first_stays(tmp_path, monkeypatch):
    monkeypatch.delenv(OUTCOME_FOLDER, raising=False)
    keep_for_restart("workspace", "lost")  # nobody to keep it
    assert not started_by_us() and kept_for_restart("workspace") is None
    monkeypatch.setenv(OUTCOME_FOLDER, str(tmp_path))
    assert started_by_us() and kept_for_restart("workspace") is None
    keep_for_restart("workspace", "first")
    keep_for_restart("workspace", "second")
    assert kept_for_restart("workspace") == "first"
    assert read_outcomes(tmp_path) == []


def _launcher(place: Path, *argv: str) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCHELASTIC_RUN_ID": "test",
        OUTCOME_FOLDER: str(place),
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


@pytest.mark.skipif(sys.platform != "linux", reason="asked of the Linux kernel")
def test_a_rank_does_not_outlive_its_launcher(tmp_path):
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


@pytest.mark.skipif(sys.platform != "linux", reason="asked of the Linux kernel")
def test_a_rank_whose_launcher_is_gone_already_ends_at_once(tmp_path):
    launcher = _launcher(tmp_path, "1")  # remembered: not the rank's parent
    out, _ = launcher.communicate(timeout=60)
    assert out.split()[1:] == ["1"]  # no word from the rank, exit code 1
