"""``python -m image_classification report …``: what finished runs say, alone and together."""

from __future__ import annotations

from collections.abc import Callable

from image_classification.core.errors import ConfigError, unknown
from image_classification.core.program import command
from image_classification.core.registry import Registry

Command = Callable[[list[str]], int]

COMMANDS: Registry[Command] = Registry("report command")
SUMMARIES: dict[str, str] = {}


def _add(name: str, summary: str) -> None:
    """List ``report NAME``, which is ``main`` of ``cli/report_NAME.py``."""
    COMMANDS.add(name, f"image_classification.cli.report_{name}:main")
    SUMMARIES[name] = summary


_add("combine", "runs over seeds, precisions or devices: mean, spread, verdict, speed-up, scaling")
_add("compare", "one run in two environments: which figures regressed")
_add("history", "all runs below a folder in order of time, with what regressed")
_add("plots", "pictures of one run, or of several over one another")


def usage() -> str:
    """Return what ``report --help`` prints."""
    lines = [f"  {name:<9} {summary}" for name, summary in SUMMARIES.items()]
    head = f"usage: {command('report COMMAND …')}\n\n"
    return head + "\n".join(lines) + "\n\nEach has its own --help.\n"


def main(argv: list[str]) -> int:
    """Run one command; return the exit code. Raises UserError."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if not argv:
        raise ConfigError(f"report: name what to do ({', '.join(COMMANDS)}): see report --help")
    if argv[0] not in COMMANDS:
        raise ConfigError(unknown("report command", argv[0], COMMANDS))
    return COMMANDS.get(argv[0])(list(argv[1:]))
