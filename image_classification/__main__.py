"""``image-classification VERB …``, also as ``python -m image_classification VERB …``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from image_classification.cli.command_line import (
    complete_command,
    exit_with_one_line,
    version_line,
    words_to_complete,
)
from image_classification.core.program import command
from image_classification.core.registry import Registry

Verb = Callable[[list[str]], int]

VERBS: Registry[Verb] = Registry("verb")
VERBS.add("launch", "image_classification.cli.launch:main")
VERBS.add("dataset", "image_classification.cli.dataset:main")
VERBS.add("doctor", "image_classification.cli.doctor:main")
VERBS.add("report", "image_classification.cli.report:main")

_HELP = """
  launch …              run a named configuration, or show what it would do (launch.py does too)
  dataset check DIR     decode every image once and report what would break a run
  dataset prepare DIR   put ImageNet's official archives, or a flat val/, into class folders
  dataset pack DIR      write a data set into TFRecord, RecordIO or WebDataset shards
  dataset fake DIR      make an ImageNet-like data set for trying things out
  dataset demo OUT      write the demo data set (handwritten digits, JPEG class folders) to OUT
  doctor                check this machine for what would break a long run
  report combine RUN…   runs over seeds, precisions or devices: mean, spread, verdict on the mean
  report compare A B    the same run in two environments: which figures regressed
  report history DIR    all runs below DIR in order of time, with what regressed
  report plots RUN…     plots of one run, or of several overlaid
  report submit RUN     a measured run as a row of the model pages and an entry of published.yml

Each has its own --help. --version prints the version.
"""


def main(argv: Sequence[str]) -> int:
    """Run a verb; return the exit code. Raises UserError."""
    if not argv:
        complete_command(VERBS)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {command('VERB …')}\n{_HELP}", end="")
        return 0
    if argv[0] == "--version":
        print(version_line())
        return 0
    return VERBS.get(argv[0])(list(argv[1:]))


def run(argv: Sequence[str] | None = None) -> int:
    """Start the program with ``argv``, by default `sys.argv`'s; return the exit code."""
    words = [*(sys.argv[1:] if argv is None else argv), *words_to_complete()]
    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if words[:1] == ["launch"] and not ignored:
        # Until a run handles it, Ctrl-C ends this process as SIGTERM does, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return exit_with_one_line(main, words)


if __name__ == "__main__":
    sys.exit(run())
