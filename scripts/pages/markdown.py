"""Markdown pieces that every generated block is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from image_classification.reporting.published.load import Source


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; columns that are empty in every row are left out."""
    lines = [[cell or "" for cell in row] for row in rows]
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    cells = [[heads[i] for i in kept], ["---"] * len(kept)]
    cells += [[line[i] or "-" for i in kept] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def plain(value: float | None) -> str:
    """A figure as printed, with thousands separators."""
    if value is None:
        return ""
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


class Sources:
    """Numbers for the sources of one page, in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[Source, int] = {}

    def __call__(self, *sources: Source) -> str:
        """Return the sources' numbers in brackets, without making a link of them."""
        found = [self.numbers.setdefault(source, len(self.numbers) + 1) for source in sources]
        return "".join(f"\\[{number}\\]" for number in dict.fromkeys(found))

    def listed(self) -> str:
        """Every source used so far, numbered."""
        return "\n".join(f"{number}. {source}" for source, number in self.numbers.items())
