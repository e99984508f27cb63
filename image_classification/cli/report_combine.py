"""``report combine RUN…``: runs over seeds, precisions or devices as one report."""

from __future__ import annotations

import json
from pathlib import Path

from image_classification.cli.command_line import CommandParser
from image_classification.cli.report_parser import add_ignore, show_json, show_tables
from image_classification.core.errors import EXIT_DONE, WorkspaceError
from image_classification.core.files import write_atomically
from image_classification.reporting.compare.combine import group_runs
from image_classification.reporting.compare.combine_text import (
    Combined,
    combined_json,
    print_combined,
)
from image_classification.reporting.compare.identity import check_ignored
from image_classification.reporting.page.combined_page import combined_page
from image_classification.reporting.run_folder import read_run

JSON_NAME = "combined.json"
PAGE_NAME = "combined.html"


def build_parser() -> CommandParser:
    """Return the parser."""
    parser = CommandParser(
        "report combine",
        description="Mean and spread of runs of one name over their seeds, with the verdict on "
        "the mean; AMP's speed-up and weak scaling where the runs for it are given.",
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="a run's folder, or its report.json"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help=f"write {JSON_NAME} and {PAGE_NAME} to this folder",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--vendor", action="store_true", help="print the vendors' table as well (always in -o)"
    )
    add_ignore(parser)
    return parser


def main(argv: list[str]) -> int:
    """Combine runs; return 0.

    Raises:
        ConfigError: the command line cannot be understood. WorkspaceError: a run cannot be read,
            the runs cannot be combined, or the folder cannot be written.
    """
    arguments = build_parser().parse_args(argv)
    ignored = check_ignored(arguments.ignore)
    combined = Combined.of(group_runs([read_run(path) for path in arguments.runs], ignored))
    content = combined_json(combined)
    if arguments.output is not None:
        _write(arguments.output, content, combined)
    if arguments.json:
        show_json(content)
    else:
        show_tables(lambda console: print_combined(console, combined, vendor=arguments.vendor))
    return EXIT_DONE


def _write(folder: Path, content: object, combined: Combined) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"cannot make {folder}: {error.strerror or error}; give another -o"
        ) from error
    write_atomically(folder / JSON_NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / PAGE_NAME, combined_page(combined))
