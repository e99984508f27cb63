"""A table on a terminal, as plain text and as HTML."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from image_classification.reporting.table import (
    STYLES,
    Cell,
    Column,
    Table,
    columns,
    marked,
    pairs,
    plain_lines,
    print_table,
    to_html,
)

FIGURES = Table(
    (Column("figure", css="figure"), Column("measured", "number"), Column("verdict", wrap=False)),
    [
        ("top-1", "76.80 %", marked("reproduced")),
        (Cell("speed <b>", detail="run-id"), "8,300 images/s", marked("below")),
        (),
        ("latency [red]", "-", marked("odd")),
    ],
    title="Against the published figures",
    notes=["Tesla V100"],
)


def printed(table, width=80, **options):
    output = io.StringIO()
    print_table(Console(file=output, width=width, **options), table)
    return output.getvalue()


def test_print_table():
    assert printed(FIGURES) == (
        "Against the published figures\n"
        "┏━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━┓\n"
        "┃ figure        ┃       measured ┃ verdict    ┃\n"
        "┡━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━┩\n"
        "│ top-1         │        76.80 % │ reproduced │\n"
        "│ speed <b>     │ 8,300 images/s │ below      │\n"
        "│ run-id        │                │            │\n"
        "├───────────────┼────────────────┼────────────┤\n"
        "│ latency [red] │              - │ odd        │\n"
        "└───────────────┴────────────────┴────────────┘\n"
        "Tesla V100\n"
    )


def test_marks_have_a_style_on_a_terminal():
    colored = printed(FIGURES, force_terminal=True, color_system="standard", legacy_windows=False)
    assert "\x1b[1;32mreproduced" in colored and "\x1b[1;31mbelow" in colored
    assert marked("ok").mark == "ok" and marked("odd").mark == ""


def test_print_table_with_other_looks_and_without_heads():
    compact = Table(columns("run", "images/s", numbers=[1]), [("a", "8,300")], look="compact")
    assert [line.rstrip() for line in printed(compact).splitlines()] == [
        "",
        " run  images/s",
        " ─────────────",
        " a       8,300",
        "",
    ]
    bare = Table((Column(width=7), Column("found")), [("ok", "8 devices")], look="bare")
    assert printed(bare, width=20).rstrip() == "ok      8 devices"
    assert "what" not in printed(pairs([("folder", "runs/x")]))


@pytest.mark.parametrize("width", [30, 80])
def test_long_text_is_folded_at_the_width_of_the_console(width):
    path = "/runs/" + "long-name-" * 20
    text = printed(pairs([("folder", path)]), width)
    assert max(map(len, text.splitlines())) <= width
    cells = [line.split("│")[2].strip() for line in text.splitlines() if "│" in line]
    assert "".join(cells) == path


def test_plain_lines_are_as_wide_as_their_longest_cells():
    assert plain_lines(FIGURES) == [
        "Against the published figures",
        "figure                  measured  verdict",
        "top-1                    76.80 %  reproduced",
        "speed <b> run-id  8,300 images/s  below",
        "",
        "latency [red]                  -  odd",
        "Tesla V100",
    ]
    fixed = Table((Column(width=7), Column()), [("ok", "8 devices")], head=False)
    assert plain_lines(fixed, gap=" ") == ["ok      8 devices"]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_escaped_and_every_tag_is_closed():
    text = to_html(FIGURES, stacked=True)
    tags = Tags(text)
    assert tags.open == []
    assert "speed &lt;b&gt;" in text and "<b>" not in text
    assert ("td", {"class": "num", "data-head": "measured"}) in tags.seen
    assert ("th", {"scope": "col", "class": "figure"}) in tags.seen
    assert ("span", {"class": "mark reproduced"}) in tags.seen
    assert '<br><span class="note">run-id</span>' in text
    labels = Tags(to_html(pairs([("folder", "runs/x")])))
    assert ("th", {"scope": "row"}) in labels.seen and labels.open == []


def test_every_style_is_one_that_rich_knows():
    console = Console(file=io.StringIO())
    for style in STYLES.values():
        assert console.get_style(style)
