"""What the ``report`` commands have in common: a parser, and output whose reader may go away."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from rich.console import Console

from image_classification.cli.command_line import CommandParser
from image_classification.core.terminal import mute_stdout, show
from image_classification.reporting.compare.regression import THRESHOLDS, Thresholds


def add_ignore(parser: CommandParser) -> None:
    """Add ``--ignore``."""
    parser.add_argument(
        "--ignore",
        metavar="KEY",
        action="append",
        default=[],
        help="a setting that may differ, such as data.workers; may be given several times",
    )


def add_thresholds(parser: CommandParser) -> None:
    """Add one ``--threshold-…`` a kind of figure."""
    for name, kind in THRESHOLDS.items():
        parser.add_argument(
            f"--threshold-{name}",
            metavar=kind.unit.upper(),
            type=_threshold,
            default=kind.default,
            help=f"{kind.what}: how many {kind.unit} worse is a regression (default: "
            f"{kind.default:g})",
        )


def thresholds_of(arguments: argparse.Namespace) -> Thresholds:
    """Return what `add_thresholds` has read."""
    given = vars(arguments)
    return {name: given[f"threshold_{name}"] for name in THRESHOLDS}


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def show_json(content: Any) -> None:
    """Print ``content`` as JSON; a reader that has gone changes no exit code."""
    show_text(json.dumps(content, indent=1, allow_nan=False))


def show_tables(draw: Callable[[Console], None]) -> None:
    """Print what ``draw`` prints to a console as wide as the terminal, with colours only there."""
    console = Console(highlight=False)
    with console.capture() as captured:
        draw(console)
    show_text(captured.get().rstrip("\n"))


def show_text(text: str) -> None:
    """Print ``text``; a reader that has gone changes no exit code."""
    try:
        show(text)
    except BrokenPipeError:
        mute_stdout()
