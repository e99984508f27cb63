"""What a launcher and its processes tell each other: how each ended, and what a restart needs."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USER,
)

OUTCOME_FOLDER = "IMAGE_CLASSIFICATION_OUTCOMES"
"""Environment variable: where each process started here leaves how it ended."""
RESTART_REASON = "IMAGE_CLASSIFICATION_RESTART_REASON"
"""Environment variable: why the processes are started again, in words."""

# Which end explains the whole run's: one rank's error makes the others fail in other ways.
_SEVERITY = (EXIT_USER, EXIT_DIVERGED, EXIT_STOPPED, EXIT_BUG, EXIT_DONE)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """How one process ended: exit code and, unless 0, the line to show. rank is global.

    retry: the cause lies in another process or the network, so that starting again may help.
    """

    rank: int
    code: int
    message: str
    retry: bool = False


def leave_outcome(outcome: Outcome, environ: Mapping[str, str] | None = None) -> bool:
    """Leave ``outcome`` for the parent; False when no parent of ours is listening."""
    folder = _folder(environ)
    if folder is None:
        return False
    (folder / f"rank-{outcome.rank}.json").write_text(json.dumps(vars(outcome)))
    return True


def gather_outcomes(folder: Path) -> list[Outcome]:
    """Return what the processes have left, the one that explains the others first."""
    found = [Outcome(**json.loads(p.read_text())) for p in folder.glob("rank-*.json")]
    return sorted(found, key=lambda o: (o.retry, _SEVERITY.index(o.code), o.rank))


def forget_outcomes(folder: Path) -> None:
    """Remove the outcomes of processes that are started again."""
    for path in folder.glob("rank-*.json"):
        path.unlink()


def remember(name: str, text: str) -> None:
    """Keep ``text`` for the processes started after this one; the first one said stays."""
    folder = _folder(None)
    if folder is not None and not (folder / name).exists():
        (folder / name).write_text(text)


def recall(name: str) -> str | None:
    """Return what an earlier process of this launch has kept under ``name``."""
    folder = _folder(None)
    path = None if folder is None else folder / name
    return path.read_text() if path is not None and path.exists() else None


def _folder(environ: Mapping[str, str] | None) -> Path | None:
    folder = (os.environ if environ is None else environ).get(OUTCOME_FOLDER)
    return None if folder is None else Path(folder)


def started_by_us() -> bool:
    """Return whether this process was started by `image_classification.launch.processes.launch`."""
    return OUTCOME_FOLDER in os.environ


def end_with_launcher() -> None:
    """Have the kernel kill this process when its agent is gone, even while it is stopped.

    Without that, ranks would train on for ever after a SIGKILL to the agent, with nobody to stop
    them. Does nothing where no agent started this process, and outside Linux.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = recall("launcher")
    if launcher is not None and int(launcher) != os.getppid():
        os._exit(EXIT_BUG)
