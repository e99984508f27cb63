from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image_classification.launch.outcomes import (
    Outcome,
    clear_outcomes,
    read_outcomes,
    report_outcome,
)
from image_classification.launch.processes import (
    ProcessEnds,
    exit_code,
    is_stopped,
    root_cause,
)

LOST = Outcome(0, 1, "lost contact with rank 1; see its own error", retry=True)


@pytest.mark.parametrize(
    ("ends", "outcomes", "rank", "code", "message", "retry"),
    [
        # A mistake explains the ranks that lose contact with the one that made it.
        (ProcessEnds({0: 1, 1: 2}), [LOST, Outcome(1, 2, "bad image")], 1, 2, "bad image", False),
        (ProcessEnds({0: 1, 1: -9}), [LOST], 1, 1, "killed by signal 9", True),
        (ProcessEnds({0: 1, 1: 1}), [LOST], 1, 1, "ended with exit code 1", True),
        (ProcessEnds({0: 1}), [LOST], 0, 1, "lost contact with rank 1", True),
        (ProcessEnds({1: -9}, {1: 61.0}), [LOST], 1, 1, "had not run for 61 s", True),
        # The agent's own SIGKILL to a hanging rank is not what went wrong.
        (ProcessEnds({0: 1}, {1: 3.0}), [LOST], 0, 1, "lost contact with rank 1", True),
        (
            ProcessEnds({0: 3, 1: 3}),
            [Outcome(r, 3, "diverged") for r in (0, 1)],
            0,
            3,
            "diverged",
            False,
        ),
    ],
)
def test_one_end_explains_the_others(ends, outcomes, rank, code, message, retry, tmp_path):
    for outcome in outcomes:
        report_outcome(outcome, {"IMAGE_CLASSIFICATION_OUTCOMES": str(tmp_path)})
    cause = root_cause(ends, read_outcomes(tmp_path))
    assert (cause.rank, cause.code, cause.retry) == (rank, code, retry)
    assert message in cause.message
    clear_outcomes(tmp_path)
    assert read_outcomes(tmp_path) == []


def test_a_child_is_looked_at_and_left_to_be_waited_for():
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
    assert exit_code(child.pid) is None  # waited for: nothing left to see


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_a_launcher_nothing_is_left(tmp_path: Path):
    assert not report_outcome(Outcome(0, 2, "x"), {})
