"""``python -m image_classification doctor``: find what would break a long run before it starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from image_classification.cli.command_line import CommandParser, completed_by
from image_classification.config.catalogue import load_catalogue
from image_classification.config.names import read_name
from image_classification.core.errors import EXIT_DONE, EXIT_USER
from image_classification.core.program import mute_stdout, show
from image_classification.doctor.checks import Context, run_checks
from image_classification.doctor.report import (
    FAIL,
    overall,
    print_result,
    result_line,
    results_json,
    verdict,
)


def build_parser() -> CommandParser:
    """Return the parser; its errors are ConfigError."""
    parser = CommandParser(
        "doctor",
        description="Check this machine for what would break a long run: GPUs, driver, DALI, "
        "collectives, shared memory, limits, disk, data set, clock, CPUs, container. Each line is "
        "ok, warn, fail or skipped, with the remedy. Exits with 2 if any check fails.",
    )
    platform = parser.add_argument(
        "--platform", metavar="P", help="compare with what the runs of this platform need"
    )
    completed_by(platform, lambda _: load_catalogue().platforms)
    parser.add_argument(
        "--data", metavar="DIR", help="data set, or 'demo' (default: that of the platform)"
    )
    parser.add_argument(
        "--workspace", metavar="DIR", default="runs", help="where runs write (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print all results as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Check the machine; return the exit code, 2 if anything failed.

    Raises:
        ConfigError: the command line is invalid, or there is no such platform.
    """
    arguments = build_parser().parse_args(argv)
    platforms = load_catalogue().platforms
    if arguments.platform is not None:
        about = {name: block.about for name, block in platforms.items()}
        arguments.platform, _ = read_name("platform", arguments.platform, platforms, about)
    context = Context(arguments.platform, arguments.data, Path(arguments.workspace))
    console = Console()
    results = []
    try:
        for result in run_checks(context):
            results.append(result)
            if arguments.json:
                continue
            if console.is_terminal:
                _print(print_result, console, result)
            else:
                _print(show, result_line(result))
    except KeyboardInterrupt:
        # End as SIGINT ends a program, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    _print(show, results_json(results) if arguments.json else f"\n{verdict(results)}")
    return EXIT_USER if overall(results) == FAIL else EXIT_DONE


def _print(function: Callable[..., None], *arguments: object) -> None:
    """Call ``function``; a reader that stops reading does not change the exit code."""
    try:
        function(*arguments)
    except BrokenPipeError:
        mute_stdout()
