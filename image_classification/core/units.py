"""Intervals with units: ``"3 steps"``, ``"10 minutes"``, ``"1 epochs"``.

Bytes for people.

Plain values for files, and quantities for people: no floats a JSON reader would choke on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from image_classification.core.errors import ConfigError

_UNITS = {"step": "steps", "minute": "minutes", "min": "minutes", "epoch": "epochs"}


@dataclass(frozen=True)
class Every:
    """How often something happens; unit is ``steps``, ``minutes`` or ``epochs``."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Every:
        """Read ``"N steps"``, ``"N minutes"`` or ``"N epochs"`` (N >= 1, singular allowed).

        Raises:
            ConfigError: anything else.
        """
        match = re.fullmatch(r"\s*(\d+)\s*([a-z]+?)s?\s*", text)
        if not match or match[2] not in _UNITS or int(match[1]) < 1:
            raise ConfigError(
                f"cannot read interval {text!r}: write 'N steps', 'N minutes' or 'N epochs', N >= 1"
            )
        return cls(int(match[1]), _UNITS[match[2]])

    def due(self, step: int, elapsed_s: float) -> bool:
        """Return whether it is time after ``step``, ``elapsed_s`` seconds since the last time."""
        if self.unit == "steps":
            return step % self.count == 0
        return self.unit == "minutes" and elapsed_s >= 60 * self.count

    def due_epoch(self, epochs_done: int) -> bool:
        """Return whether it is time at the end of an epoch (units other than epochs: always)."""
        return self.unit != "epochs" or epochs_done % self.count == 0


_BINARY_PREFIXES = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(num_bytes: float) -> str:
    """Write bytes in binary units: ``1.5 GiB``."""
    amount = float(num_bytes)
    for prefix in _BINARY_PREFIXES[:-1]:
        if amount < 1024:
            return f"{amount:.0f} B" if prefix == "B" else f"{amount:.1f} {prefix}"
        amount /= 1024
    return f"{amount:.1f} {_BINARY_PREFIXES[-1]}"


def finite(value: Any) -> Any:
    """Copy ``value`` for JSON: tuples become lists, NaN and infinities become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def number(value: float | None, digits: int = 2) -> str:
    """A number with ``digits`` decimals and thousands separators; a dash where not measured."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if math.isfinite(value) else str(value)


def rate(images_per_s: float | None) -> str:
    """Images a second, to about four significant digits, without the unit."""
    if images_per_s is None:
        return "-"
    return number(images_per_s, 0 if images_per_s >= 1000 else 1)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction of one as percent with its sign."""
    return "-" if fraction is None else f"{number(100 * fraction, digits)} %"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that say something: ``2 h 05 min``, ``3.4 s``."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    hours, rest_min = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest_min:02d} min"
    days, rest_h = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest_h:02d} h"


def size(num_bytes: float | None) -> str:
    """Bytes in binary units: ``1.5 GiB``."""
    return "-" if num_bytes is None else size_text(num_bytes)


def printable(text: str) -> str:
    """Replace what would drive a terminal or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def other_topk(values: Mapping[str, Any]) -> list[str]:
    """Return which ``topN`` there are beside ``top1`` and ``top5``."""
    return [n for n in values if re.fullmatch("top[0-9]+", n) and n not in ("top1", "top5")]
