"""``report compare OLD NEW``: one named run, or a folder of them, in two environments."""

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
from image_classification.reporting.compare.identity import check_ignored
from image_classification.reporting.compare.regression import (
    compare_folders,
    compare_runs,
    holds_runs,
)
from image_classification.reporting.compare.regression_text import (
    comparison_json,
    folders_json,
    print_comparison,
    print_folders,
)
from image_classification.reporting.run_folder import read_run


def build_parser() -> CommandParser:
    """Return the parser."""
    parser = CommandParser(
        "report compare",
        description="Compare a run with an earlier one of the same name, as in another container "
        "release, or every run of a folder with the one of its name in another folder. Exits "
        f"with {EXIT_REGRESSED} if a figure got worse by more than its threshold.",
    )
    parser.add_argument(
        "old", metavar="OLD", type=Path, help="a run's folder or report.json, or a folder of runs"
    )
    parser.add_argument("new", metavar="NEW", type=Path, help="the same of the later run")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_thresholds(parser)
    add_ignore(parser)
    return parser


def main(argv: list[str]) -> int:
    """Compare two runs, or two folders of runs; return 0, or EXIT_REGRESSED.

    Raises:
        ConfigError: the command line cannot be understood. WorkspaceError: a run cannot be read,
            or the two are not the same named run.
    """
    arguments = build_parser().parse_args(argv)
    ignored = check_ignored(arguments.ignore)
    thresholds = thresholds_of(arguments)
    old, new = arguments.old, arguments.new
    if holds_runs(old) and holds_runs(new):
        found = compare_folders(old, new, thresholds, ignored)
        if arguments.json:
            show_json(folders_json(found))
        else:
            show_tables(lambda console: print_folders(console, found))
        return EXIT_REGRESSED if found.regressed else EXIT_DONE
    comparison = compare_runs(read_run(old), read_run(new), thresholds, ignored)
    if arguments.json:
        show_json(comparison_json(comparison))
    else:
        show_tables(lambda console: print_comparison(console, comparison))
    return EXIT_REGRESSED if comparison.regressed else EXIT_DONE
