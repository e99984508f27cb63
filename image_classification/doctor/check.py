"""One line of a checkup of the machine: what was looked at, what was found, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
STATUSES = (OK, WARN, FAIL, SKIPPED)


@dataclass(frozen=True)
class Check:
    """What one check found.

    name: stable, lower case, words joined by hyphens. status: one of `STATUSES`. found: the value
    with its unit; of a skipped check, why. remedy: what the user can do; "" where nothing is to
    be done.
    """

    name: str
    status: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(STATUSES)}")
        if self.status in (WARN, FAIL) and not self.remedy:
            raise ValueError(f"{self.name}: a check that warns or fails needs a remedy")


def ok(name: str, found: str) -> Check:
    """Return a check that found what a run needs."""
    return Check(name, OK, found)


def warn(name: str, found: str, remedy: str) -> Check:
    """Return a check that found what a run can do with, but should not have to."""
    return Check(name, WARN, found, remedy)


def fail(name: str, found: str, remedy: str) -> Check:
    """Return a check that found what would break a run."""
    return Check(name, FAIL, found, remedy)


def skipped(name: str, why: str) -> Check:
    """Return a check that was not made."""
    return Check(name, SKIPPED, why)


def overall(checks: Iterable[Check]) -> str:
    """Return ``fail`` where any check failed, else ``warn`` where any warned, else ``ok``."""
    statuses = {check.status for check in checks}
    return next((status for status in (FAIL, WARN) if status in statuses), OK)
