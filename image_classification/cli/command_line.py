"""What all verbs share: argument parser, shell completion, and one line for a user's error."""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from image_classification import __version__
from image_classification.core.errors import ConfigError, UserError
from image_classification.core.program import command, mute_stdout

_COMPLETING = "_ARGCOMPLETE"  # set by the shell: which word names the program, from 1


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with one spelling of each option: ``--batch-size, -b N``."""

    def __init__(self, prog: str, **options: Any) -> None:
        options["max_help_position"] = 28
        super().__init__(prog, **options)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags: dict[str, str] = {}
        for flag in action.option_strings:
            flags.setdefault(flag.replace("_", "-"), flag)
        shown = ", ".join(flags.values())
        value = self._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        return f"{shown} {value}".rstrip()


class CommandParser(argparse.ArgumentParser):
    """Parser of one verb, such as ``report compare``; its errors are ConfigError.

    Usage texts name the program the way the user started it.
    """

    def __init__(self, verb: str = "", **options: Any) -> None:
        if verb:
            options["prog"] = command(verb)
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(**options)
        # Number of words between the program's name and the arguments of the verb.
        self._depth = 0 if self.prog == "launch.py" else len(verb.split())

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message.removeprefix('argument ')}: see {self.prog} --help")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Complete where the shell asks for it, else parse; errors are ConfigError."""
        self.complete()
        return super().parse_args(args, namespace)

    def complete(self) -> None:
        """Print completions and exit where the shell asks for them; else do nothing."""
        if _COMPLETING in os.environ:
            import argcomplete

            os.environ[_COMPLETING] = str(int(os.environ[_COMPLETING]) + self._depth)
            argcomplete.autocomplete(self, always_complete_options=False)


def version_line() -> str:
    """Return the versions of the program, torch and Python, without importing torch."""
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "torch is not installed"
    return f"image-classification {__version__} ({torch}, Python {platform.python_version()})"


def completed_by(
    action: argparse.Action, words: Iterable[str] | Callable[[argparse.Namespace], Iterable[str]]
) -> None:
    """Let the shell complete an argument by ``words``, or by a function of what was parsed."""

    def completer(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
        return words(parsed_args) if callable(words) else words

    action.completer = completer  # type: ignore[attr-defined]


def complete_command(commands: Iterable[str], verb: str = "") -> None:
    """Print completions of the command after ``verb`` and exit, where the shell asks for them."""
    parser = CommandParser(verb)
    parser.add_argument("command", choices=list(commands))
    parser.complete()


def words_to_complete() -> list[str]:
    """Return the words between the program's name and the one that the shell completes, if any."""
    if _COMPLETING not in os.environ:
        return []
    from argcomplete.lexers import split_line

    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    return [str(word) for word in words[int(os.environ[_COMPLETING]) :]]


def exit_with_one_line(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run ``main(argv)``; for a UserError, print one line ``error: …`` and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Replace characters that the terminal's encoding lacks, instead of failing.
        sys.stdout.reconfigure(errors="replace")
    try:
        return main(argv)
    except UserError as error:
        # Under torchrun every process prints its error.
        rank = os.environ.get("RANK", "0")
        where = f"[rank {rank}] " if rank != "0" else ""
        print(f"error: {where}{error.message}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has ended; Python must not fail on the rest at exit.
        mute_stdout()
        return 0
