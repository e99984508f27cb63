"""Exit codes, errors that the user can fix, and divergence.

Exit codes: 0 done, 1 a bug, 2 an error that the user can fix, 3 diverged, 4 a report has regressed,
75 stopped by a signal after saving.
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
    """An error that the user can fix: one line ``error: …`` without traceback, exit code 2.

    The message names what is wrong and the remedy.
    """

    exit_code = EXIT_USER

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    @property
    def message(self) -> str:
        """The message, on one line."""
        return str(self.args[0])


class ConfigError(UserError):
    """A wrong name, key, option or value of the configuration."""


class DataError(UserError):
    """A data set that is missing, malformed or undecodable."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or from another run."""


class WorkspaceError(UserError):
    """A run folder that cannot be written, is full or belongs to another run."""


class DeviceError(UserError):
    """A device that is missing or lacks a required feature."""


class DivergedError(Exception):
    """Loss or gradients are not finite; the last good checkpoint is kept. Exit code 3."""

    exit_code = EXIT_DIVERGED

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, int]]:
        return type(self), (str(self), self.step)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the valid name most similar to ``name``, ignoring case; "" if none is similar."""
    folded = {v.casefold(): v for v in valid}
    hits = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[hits[0]] if hits else ""


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return ``; did you mean 'NAME'?`` with the nearest valid name; "" if none is similar."""
    hint = nearest(name, valid)
    return f"; did you mean {hint!r}?" if hint else ""


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return the message for an unknown name, with the nearest valid one and all valid ones."""
    choices = list(valid)
    listed = ", ".join(choices) if len(choices) <= 24 else f"{len(choices)} names, see --list"
    return f"unknown {kind} {name!r}{suggestion(name, choices)} (valid: {listed})"


def shortened(value: object, length: int = 60) -> str:
    """Return ``repr(value)``, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
