"""Files by which a launcher's processes report how they ended and keep data for a restart.

They are in a folder of the launcher, whose path is in the processes' environment. The error files
of torch's agent are not used: it reads only those of the processes that failed first, which often
do not have the cause.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
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
"""Environment variable: the folder in which its processes report how they ended."""
RESTART_REASON = "IMAGE_CLASSIFICATION_RESTART_REASON"
"""Environment variable: why the processes were started again, in words."""

# The first of these found explains the run: one rank's error makes the others fail in other ways.
_SEVERITY = (EXIT_USER, EXIT_DIVERGED, EXIT_STOPPED, EXIT_BUG, EXIT_DONE)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """How one process ended: exit code and, unless 0, the line to show. rank is global.

    retry: the cause is another process or the network, so that starting again may help.
    """

    rank: int
    code: int
    message: str
    retry: bool = False

    def show(self) -> int:
        """Print the line to stderr; return the exit code."""
        kind = "stopped: " if self.code == EXIT_STOPPED else "error: "
        where = f"[rank {self.rank}] " if self.rank else ""
        print(f"{kind}{where}{self.message}", file=sys.stderr)
        return self.code


def report_outcome(outcome: Outcome) -> bool:
    """Report ``outcome`` to our launcher; return False if it did not start this process."""
    if not started_by_us():
        return False
    folder = Path(os.environ[OUTCOME_FOLDER])
    # Renamed when complete: the launcher may read at any time.
    temporary = folder / f".rank-{outcome.rank}"
    temporary.write_text(json.dumps(vars(outcome)))
    temporary.replace(folder / f"rank-{outcome.rank}.json")
    return True


def read_outcomes(folder: Path) -> list[Outcome]:
    """Return the outcomes reported so far, the one that explains the others first."""
    found = [Outcome(**json.loads(p.read_text())) for p in folder.glob("rank-*.json")]
    return sorted(found, key=lambda o: (o.retry, _SEVERITY.index(o.code), o.rank))


def keep_for_restart(name: str, text: str) -> None:
    """Keep ``text`` for the processes of later starts; does not replace an earlier value."""
    if started_by_us() and kept_for_restart(name) is None:
        (Path(os.environ[OUTCOME_FOLDER]) / name).write_text(text)


def kept_for_restart(name: str) -> str | None:
    """Return the text that an earlier process of this launch kept as ``name``, if any."""
    path = Path(os.environ.get(OUTCOME_FOLDER, "")) / name
    return path.read_text() if started_by_us() and path.exists() else None


def started_by_us() -> bool:
    """Return whether `launch.processes.launch` started this process."""
    return OUTCOME_FOLDER in os.environ


def end_with_launcher() -> None:
    """Have the kernel kill this process when the agent that started it ends, even while stopped.

    Otherwise ranks would go on training after a SIGKILL to the agent. Does nothing where no agent
    started this process, and outside Linux.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = kept_for_restart("launcher")
    if launcher is not None and int(launcher) != os.getppid():
        os._exit(EXIT_BUG)
