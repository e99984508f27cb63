"""Colours, lines, markers and hatches: each distinction is made in two ways.

The colours are the Okabe-Ito palette, which colour-blind readers can tell apart; line styles,
markers and hatches say the same in black and white.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, ORANGE, SKY = "#cc79a7", "#e69f00", "#56b4e9"
INK, BAND, GRID, GROUND = "#222222", "#7f7f7f", "#dddddd", "#ffffff"

COLORS = {
    "blue": BLUE,
    "vermilion": VERMILION,
    "green": GREEN,
    "purple": PURPLE,
    "orange": ORANGE,
    "sky": SKY,
    "ink": INK,
    "band": BAND,
    "grid": GRID,
    "ground": GROUND,
}
"""Every colour there is in a picture; the page sets them anew on a dark ground."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    # A dollar sign in a folder's name is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@dataclass(frozen=True)
class Look:
    """How something is drawn. line: a matplotlib line style, empty for none; width in points.

    filled: whether markers are; an open one has the ground's colour inside.
    """

    color: str
    line: str = "-"
    marker: str = ""
    filled: bool = True
    width: float = 1.6
    hatch: str = ""

    def lined(self, line: str, *, filled: bool = True) -> Look:
        """The same in colour and marker with another line."""
        return replace(self, line=line, filled=filled)


_RUN_COLORS = (BLUE, VERMILION, GREEN, PURPLE, INK, ORANGE, SKY)
_RUN_MARKERS = (
    ("o", "///"),
    ("^", "\\\\\\"),
    ("s", "..."),
    ("D", "xxx"),
    ("v", "---"),
    ("P", "+++"),
)
RUNS = tuple(
    Look(_RUN_COLORS[at % 7], marker=_RUN_MARKERS[at % 6][0], hatch=_RUN_MARKERS[at % 6][1])
    for at in range(42)
)
"""The looks of several runs; a forty-third begins again."""

TRAINING = Look(BLUE)
RAW = Look(VERMILION, "--", "o")
AVERAGED = Look(GREEN, ":", "s")
RESUMED = Look(INK, ":", width=0.9)
PUBLISHED = Look(INK, "-.", "*", filled=False, width=1.2)
