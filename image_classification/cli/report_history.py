"""``report history DIR``: every run below a folder in order of time."""

from __future__ import annotations

from pathlib import Path

from image_classification.cli.command_line import CommandParser
from image_classification.cli.report_parser import (
    add_ignore,
    add_thresholds,
    show_json,
    show_tables,
    thresholds_of,
)
from image_classification.core.errors import EXIT_DONE, EXIT_REGRESSED
from image_classification.reporting.compare.history import AGAINST, read_history
from image_classification.reporting.compare.history_text import history_json, print_history
from image_classification.reporting.compare.identity import check_ignored


def build_parser() -> CommandParser:
    """Return the parser."""
    parser = CommandParser(
        "report history",
        description="List all runs below DIR by name and time, with what they ran on, and flag "
        "figures that are worse than before. Exits with "
        f"{EXIT_REGRESSED} if the newest run of any name is.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder that holds runs")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--against",
        choices=AGAINST,
        default="best",
        help="which earlier run each is held to: the best of all, or the previous (default: best)",
    )
    add_thresholds(parser)
    add_ignore(parser)
    return parser


def main(argv: list[str]) -> int:
    """Follow runs over time; return 0, or EXIT_REGRESSED.

    Raises:
        ConfigError: the command line cannot be understood. WorkspaceError: the folder has no
            report that can be read.
    """
    arguments = build_parser().parse_args(argv)
    ignored = check_ignored(arguments.ignore)
    thresholds = thresholds_of(arguments)
    history = read_history(arguments.folder, thresholds, ignored, arguments.against)
    if arguments.json:
        show_json(history_json(history))
    else:
        show_tables(lambda console: print_history(console, history))
    return EXIT_REGRESSED if history.regressed else EXIT_DONE
