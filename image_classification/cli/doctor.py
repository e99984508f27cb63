"""``python -m image_classification doctor``: what would break a long run, before it starts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from image_classification.cli.command_line import CommandParser
from image_classification.config.catalogue import load_catalogue
from image_classification.core.errors import EXIT_DONE, EXIT_USER, ConfigError, unknown
from image_classification.core.terminal import mute_stdout, show
from image_classification.doctor.check import FAIL, Check, overall
from image_classification.doctor.checks import Asked, Checkup
from image_classification.doctor.probe import any_stuck
from image_classification.doctor.report import (
    check_line,
    checks_json,
    print_check,
    verdict,
)


def build_parser() -> CommandParser:
    """Return the parser; its errors are ConfigError."""
    parser = CommandParser(
        "doctor",
        description="Look for what would break a long run on this machine: GPUs, driver, DALI, "
        "collectives, shared memory, limits, disk, data set, clock, CPUs, container. Each line is "
        "ok, warn, fail or skipped, with the remedy. Exits with 2 if any fails.",
    )
    parser.add_argument(
        "--platform", metavar="P", help="compare with what this platform's runs need"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="data set, or 'demo' (default: the platform's own)"
    )
    parser.add_argument(
        "--workspace", metavar="DIR", default="runs", help="where runs write to (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Check the machine; return the exit code: 2 where anything failed.

    Raises:
        ConfigError: the command line cannot be understood, or no such platform.
    """
    arguments = build_parser().parse_args(argv)
    platforms = load_catalogue().platforms
    if arguments.platform is not None and arguments.platform not in platforms:
        raise ConfigError(unknown("platform", arguments.platform, platforms))
    asked = Asked(arguments.platform, arguments.data, Path(arguments.workspace))
    try:
        code = _examine(Checkup(asked), arguments.json)
    except KeyboardInterrupt:
        # Processes are gone by now; end as SIGINT ends a program, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    if any_stuck():
        # Python would wait for it, and it hangs in the kernel.
        sys.stdout.flush()
        os._exit(code)
    return code


def _examine(checkup: Checkup, as_json: bool) -> int:
    checks: list[Check] = []
    console = Console()
    for check in checkup.run():
        checks.append(check)
        if not as_json:
            _print(console, check_line(check), check)
    _print(console, checks_json(checks) if as_json else f"\n{verdict(checks)}")
    return EXIT_USER if overall(checks) == FAIL else EXIT_DONE


def _print(console: Console, line: str, check: Check | None = None) -> None:
    """Show ``line``, or ``check`` on a terminal; a reader that has gone changes no exit code."""
    try:
        if check is not None and console.is_terminal:
            print_check(console, check)
        else:
            show(line)
    except BrokenPipeError:
        mute_stdout()
