"""Intervals such as ``"3 steps"``, numbers and quantities as text, and values for JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Every:
    """An interval. unit: ``steps``, ``minutes`` or ``epochs``."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Every:
        """Parse a value of ``run.save_every``, such as ``3 steps``."""
        count, unit = text.split()
        return cls(int(count), unit)

    def due(self, step: int, elapsed_s: float) -> bool:
        """Return whether the interval ends after ``step``, ``elapsed_s`` after its start."""
        if self.unit == "steps":
            return step % self.count == 0
        return self.unit == "minutes" and elapsed_s >= 60 * self.count

    def due_epoch(self, epochs_done: int) -> bool:
        """Return whether it ends at the end of an epoch; always true for other units."""
        return self.unit != "epochs" or epochs_done % self.count == 0


def finite(value: Any) -> Any:
    """Return a copy for JSON: tuples as lists, NaN and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with ``digits`` decimals and thousands separators; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if math.isfinite(value) else str(value)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: ``1 device``, ``2 devices``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some_of(items: Sequence[str], most: int = 3) -> str:
    """Return the first ``most`` items, and how many more there are: ``a, b, c and 7 more``."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def weights_text(path: str, which: str | None, epoch: float | None, step: int | None) -> str:
    """Return which weights were used: ``best checkpoint (epoch 3, step 12): PATH``."""
    if step is None:  # a file of weights
        return path
    name = "checkpoint" if which == "step" else f"{which} checkpoint"
    at = "" if epoch is None else f"epoch {epoch:.4g}, "
    return f"{name} ({at}step {step:,}): {path}"


def rate(images_per_s: float | None) -> str:
    """Return images per second with about four significant digits, without a unit."""
    if images_per_s is None:
        return "-"
    return number(images_per_s, 0 if images_per_s >= 1000 else 1)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction of 1 in percent, such as ``12.5 %``; ``-`` for None."""
    return "-" if fraction is None else f"{number(100 * fraction, digits)} %"


def duration(seconds: float | None) -> str:
    """Return seconds in suitable units: ``2 h 05 min``, ``3.4 s``; ``-`` for None."""
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
    """Return bytes in binary units, such as ``1.5 GiB``; ``-`` for None."""
    if num_bytes is None:
        return "-"
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        num_bytes /= 1024
        if num_bytes < 1024:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} TiB"


def printable(text: str) -> str:
    """Replace control characters and line breaks."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def other_topk(values: Mapping[str, Any]) -> list[str]:
    """Return the keys ``topN`` other than ``top1`` and ``top5``."""
    return [n for n in values if re.fullmatch("top[0-9]+", n) and n not in ("top1", "top5")]
