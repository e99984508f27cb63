"""Linux's way to write sets of logical CPUs."""

from __future__ import annotations


def parse_cpu_list(text: str) -> set[int]:
    """Read Linux's CPU list format: ``0-3,8`` is {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        cpus.update(range(int(low), int(high or low) + 1))
    return cpus
