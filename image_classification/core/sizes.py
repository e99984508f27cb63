"""Bytes for people."""

from __future__ import annotations

_BINARY_PREFIXES = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(num_bytes: float) -> str:
    """Write bytes in binary units: ``1.5 GiB``."""
    amount = float(num_bytes)
    for prefix in _BINARY_PREFIXES[:-1]:
        if amount < 1024:
            return f"{amount:.0f} B" if prefix == "B" else f"{amount:.1f} {prefix}"
        amount /= 1024
    return f"{amount:.1f} {_BINARY_PREFIXES[-1]}"
