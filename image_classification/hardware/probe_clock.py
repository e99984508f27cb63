"""Checks of the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone

from image_classification.core.checkup import Check, fail, ok, skipped, warn

_LEAST_YEAR = 2025
_MOST_YEAR = 2100
_STEP_S = 0.1


@dataclass(frozen=True)
class Instant:
    """Both clocks at one moment, in seconds."""

    wall_s: float
    monotonic_s: float

    @classmethod
    def now(cls) -> Instant:
        """Read both clocks."""
        return cls(time.time(), time.monotonic())


def check_clock(start: Instant, end: Instant) -> list[Check]:
    """Compare how far both clocks went between two moments, and look at the year."""
    name = "clock"
    at = datetime.fromtimestamp(end.wall_s, timezone.utc)
    elapsed_s = end.monotonic_s - start.monotonic_s
    off_s = end.wall_s - start.wall_s - elapsed_s
    found = f"{at:%Y-%m-%d %H:%M:%S} UTC; {1000 * off_s:+.1f} ms against the monotonic clock"
    found += f" in {elapsed_s:.1f} s"
    offset = skipped("clock-offset", "not measured: the offset to true time needs a time server")
    if not _LEAST_YEAR <= at.year <= _MOST_YEAR:
        remedy = "set the clock: folders and reports are named by it (timedatectl set-ntp true)"
        return [fail(name, found, remedy), offset]
    if abs(off_s) > _STEP_S:
        remedy = "let one service alone keep the clock (chronyd or ntpd), and slew, not step"
        return [warn(name, found, remedy), offset]
    return [ok(name, found), offset]
