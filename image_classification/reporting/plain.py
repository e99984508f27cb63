"""Plain values for files, and quantities for people: no floats a JSON reader would choke on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from image_classification.core.sizes import size_text


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
