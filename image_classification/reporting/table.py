"""Tables with a title and a note that are as wide as the screen, not as the table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_titled(console: Console, title: str, table: Table, note: str = "") -> None:
    """Print title, table and note."""
    console.print(Text(title, style="bold"))
    console.print(table)
    if note:
        console.print(Text(note, style="dim"))
