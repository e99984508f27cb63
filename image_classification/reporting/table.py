"""One description of a table, and its renderings for terminals, plain text and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

STYLES: Mapping[str, str] = {
    "reproduced": "bold green",
    "ok": "green",
    "better": "bold cyan",
    "improved": "bold cyan",
    "remedy": "cyan",
    "warn": "bold yellow",
    "below": "bold red",
    "regressed": "bold red",
    "fail": "bold red",
    "not significant": "yellow",
    "not-comparable": "dim",
    "not measured": "dim",
    "skipped": "dim",
    "note": "dim",
}
"""rich style of each mark. In HTML a mark is the cell's class, with ``-`` for spaces."""


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    mark: a key of `STYLES`. detail: a second line, such as a remedy or an id; detail_mark: its
    style.
    """

    text: str
    mark: str = ""
    detail: str = ""
    detail_mark: str = "note"


def marked(word: str) -> Cell:
    """Return a verdict or status as a cell in its own style."""
    return Cell(word, mark=word if word in STYLES else "")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    kind: ``number`` is right-aligned and never wrapped; ``label`` names the row, in bold and never
    wrapped. wrap: whether ``text`` may be wrapped. width: fixed, in characters; None fits the
    cells. css: an additional HTML class.
    """

    head: str = ""
    kind: Literal["text", "number", "label"] = "text"
    wrap: bool = True
    width: int | None = None
    css: str = ""


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Table:
    """A table: columns, rows of as many cells, a title above and notes below it.

    An empty row separates groups of rows. look: on a terminal ``boxed``, ``compact`` without
    vertical lines, or ``bare`` without lines and head. head: whether the columns' heads show.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    look: Literal["boxed", "compact", "bare"] = "boxed"
    head: bool = True


def pairs(rows: Iterable[tuple[str, Cell | str]], title: str = "") -> Table:
    """Return a table of labels and values without column heads."""
    return Table((Column("what", "label"), Column("value")), list(rows), title, head=False)


def columns(*heads: str, numbers: Iterable[int] = ()) -> tuple[Column, ...]:
    """Return one column per head; ``numbers`` has the positions of the columns of numbers."""
    right = set(numbers)
    return tuple(Column(head, "number" if at in right else "text") for at, head in enumerate(heads))


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def print_table(console: Console, table: Table) -> None:
    """Print the title in bold, the table, and the notes dimmed; all at the console's width."""
    from rich import box  # here, so that `plain_lines` does not pay for importing rich
    from rich.table import Table as RichTable
    from rich.text import Text

    if table.title:
        # Not rich's own title, which wraps at the width of the table.
        console.print(Text(table.title, style="bold"))
    drawn = RichTable(show_header=table.head)
    if table.look == "compact":
        drawn = RichTable(
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_header=table.head
        )
    elif table.look == "bare":
        drawn = RichTable.grid(padding=(0, 1, 0, 0), expand=True)
    for at, column in enumerate(table.columns):
        last_of_bare = table.look == "bare" and at == len(table.columns) - 1
        drawn.add_column(
            column.head,
            justify="right" if column.kind == "number" else "left",
            style="bold" if column.kind == "label" else "",
            no_wrap=column.kind != "text" or not column.wrap,
            overflow="fold" if column.kind == "text" and column.wrap else "ellipsis",
            width=column.width,
            ratio=1 if last_of_bare else None,
        )
    for row in table.rows:
        if not row:
            drawn.add_section()
            continue
        texts = []
        for cell in map(_cell, row):
            text = Text(cell.text, style=STYLES.get(cell.mark, ""))
            if cell.detail:
                text.append(f"\n{cell.detail}", style=STYLES.get(cell.detail_mark, ""))
            texts.append(text)
        drawn.add_row(*texts)
    console.print(drawn)
    for note in table.notes:
        console.print(Text(note, style="dim"))


def plain_lines(table: Table, gap: str = "  ") -> list[str]:
    """Return title, heads, rows and notes as lines of fixed-width columns, without styles.

    gap: between two columns. A cell's detail follows its text on the same line.
    """
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    texts = [[f"{c.text} {c.detail}" if c.detail else c.text for c in row] for row in rows]
    if table.head:
        texts.insert(0, [column.head for column in table.columns])
    widths = [
        column.width or max((len(row[at]) for row in texts if row), default=0)
        for at, column in enumerate(table.columns)
    ]
    lines = [table.title] if table.title else []
    for row in texts:
        cells = [
            text.rjust(width) if column.kind == "number" else text.ljust(width)
            for text, width, column in zip(row, widths, table.columns, strict=False)
        ]
        lines.append(gap.join(cells).rstrip())
    return [*lines, *table.notes]


def to_html(table: Table, *, stacked: bool = False) -> str:
    """Return the table as HTML, with every text escaped; notes follow as paragraphs.

    stacked: on a narrow screen the cells of a row stand below one another, by the page's CSS. A
    table without heads has the class ``pairs``.
    """
    classes = []
    for column in table.columns:
        names = [name for name in ("num" * (column.kind == "number"), column.css) if name]
        classes.append(f' class="{" ".join(names)}"' if names else "")
    # Focusable, so that a table wider than the screen can be scrolled with the keyboard.
    parts = ['<div class="scroll" tabindex="0">']
    style = ' class="stacked"' if stacked else "" if table.head else ' class="pairs"'
    parts.append(f"<table{style}>")
    if table.title:
        parts.append(f"<caption>{escape(table.title)}</caption>")
    if table.head:
        parts.append("<thead><tr>")
        for kind, column in zip(classes, table.columns, strict=True):
            parts.append(f'<th scope="col"{kind}>{escape(column.head)}</th>')
        parts.append("</tr></thead>\n")
    body = []
    for row in filter(None, table.rows):
        cells = []
        for kind, column, cell in zip(classes, table.columns, row, strict=True):
            tag = 'th scope="row"' if column.kind == "label" else "td"
            name = f' data-head="{escape(column.head)}"' if stacked else ""
            cells.append(f"<{tag}{kind}{name}>{_cell_html(_cell(cell))}</{tag[:2]}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("<tbody>" + "\n".join(body) + "</tbody></table></div>")
    parts += [f'<p class="note">{escape(note)}</p>' for note in table.notes]
    return "".join(parts)


def _cell_html(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.mark:
        text = f'<span class="mark {cell.mark.replace(" ", "-")}">{text}</span>'
    if cell.detail:
        detail_class = cell.detail_mark.replace(" ", "-")
        text += f'<br><span class="{detail_class}">{escape(cell.detail)}</span>'
    return text
