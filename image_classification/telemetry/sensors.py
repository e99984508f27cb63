"""The sensor protocol: reads power, memory, utilization and more of one device."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """One sample of one device; None: not measured.

    energy_j: a counter that only grows, from an arbitrary start. utilization: a fraction of 1,
    since the last reading or over the driver's own period. throttle_reasons: names, may be empty.
    """

    power_w: float | None = None
    energy_j: float | None = None
    memory_bytes: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


FIELDS = tuple(field.name for field in fields(Reading))


class ReadingFailedError(Exception):
    """One reading failed; the next may succeed."""


class DeviceLostError(Exception):
    """The device or its driver stopped responding for good."""


class Sensor(Protocol):
    """Reads one device.

    name: of the device. source: where the readings come from. missing: field of `Reading` -> why it
    is not measured; may grow with each reading. expected: whether to warn if the device cannot be
    read.
    """

    name: str
    source: str
    missing: dict[str, str]
    expected: bool

    def read(self) -> Reading:
        """Return the device's present state.

        Raises:
            ReadingFailedError: this reading failed. DeviceLostError: all later ones would, too.
        """
        ...

    def close(self) -> None:
        """Release the driver."""
        ...


class MissingSensor:
    """A device that cannot be read. why: the reason, for every field."""

    def __init__(self, name: str, why: str, expected: bool = False) -> None:
        self.name = name
        self.source = ""
        self.missing = dict.fromkeys(FIELDS, why)
        self.expected = expected

    def read(self) -> Reading:
        """Return a reading without values."""
        return Reading()

    def close(self) -> None:
        """Do nothing."""
