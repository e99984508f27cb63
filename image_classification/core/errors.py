"""Errors a user can mend, and the two other ways a run ends early.

Exit codes are part of the contract: 0 done, 1 a bug, 2 the user can mend it, 3 diverged,
4 a report is worse than an earlier one, 75 stopped by a signal after saving.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_DIVERGED = 3
EXIT_REGRESSED = 4
EXIT_STOPPED = 75


class UserError(Exception):
    """Something the user can mend: shown as one line ``error: …``, no traceback, exit 2.

    The message names the thing that is wrong and the remedy.
    """

    exit_code = EXIT_USER

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    @property
    def message(self) -> str:
        """The whole message on one line."""
        return str(self.args[0])


class ConfigError(UserError):
    """A name, key, option or value of the configuration."""


class DataError(UserError):
    """The data set: missing, misshapen or undecodable."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another run."""


class WorkspaceError(UserError):
    """The run's folder: unwritable, full or holding another run."""


class DeviceError(UserError):
    """A device that is absent or lacks what was asked of it."""


class DivergedError(Exception):
    """Loss or gradients became non-finite; the last good checkpoint is kept. Exit 3."""

    exit_code = EXIT_DIVERGED

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, int]]:
        return (type(self), (str(self.args[0]), self.step))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the valid name closest to ``name`` ("" when nothing comes near).

    Case is ignored: ``dgx1v`` finds ``DGX1V``.
    """
    folded = {v.casefold(): v for v in valid}
    hits = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[hits[0]] if hits else ""


def unknown(kind: str, name: str, valid: Iterable[str], where: str = "") -> str:
    """Word the message for an unknown name: what, where, the nearest valid one, all of them."""
    choices = list(valid)
    hint = nearest(name, choices)
    at = f"{where}: " if where else ""
    meant = f"; did you mean {hint!r}?" if hint else ""
    listed = ", ".join(choices) if len(choices) <= 24 else f"{len(choices)} names, see --list"
    return f"{at}unknown {kind} {name!r}{meant} (valid: {listed})"
