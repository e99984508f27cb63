"""What a sensor is: one device's power, memory, utilisation … at one moment."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """One sample of one device; None: not measured.

    energy_j: a counter that only grows, from any start. utilization: a fraction of 1 since the
    last reading or over the driver's own period. throttle_reasons: names, empty for none.
    """

    power_w: float | None = None
    energy_j: float | None = None
    memory_bytes: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


FIELDS = tuple(field.name for field in fields(Reading))


class MissedError(Exception):
    """One reading failed; the next may not."""


class LostError(Exception):
    """The device or its driver is gone: it is not asked again."""


class Sensor(Protocol):
    """Reads one device.

    name: the device's. source: what the readings are from. missing: field of `Reading` -> why it
    is not measured; may grow with a reading. expected: whether a device that cannot be read is
    worth a warning.
    """

    name: str
    source: str
    missing: dict[str, str]
    expected: bool

    def read(self) -> Reading:
        """Return the device's present state.

        Raises:
            MissedError: not this time. LostError: never again.
        """
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...


class NoSensor:
    """A device that nothing here can read, and why."""

    def __init__(self, name: str, why: str, expected: bool = False) -> None:
        self.name = name
        self.source = ""
        self.missing = dict.fromkeys(FIELDS, why)
        self.expected = expected

    def read(self) -> Reading:
        """Return a reading without values."""
        return Reading()

    def close(self) -> None:
        """Nothing is held."""
