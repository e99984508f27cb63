"""Command lines run inside the test's own process."""

from collections.abc import Sequence

from image_classification.__main__ import main
from image_classification.cli.command_line import exit_with_one_line


def launch(argv: Sequence[str]) -> int:
    """Run ``launch.py ARGV``; return its exit code."""
    return exit_with_one_line(main, ["launch", *argv])
