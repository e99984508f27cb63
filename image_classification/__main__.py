"""``python -m image_classification VERB …``: everything beside running a named configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from image_classification.cli.user_errors import exit_with_one_line
from image_classification.core.errors import ConfigError, unknown
from image_classification.core.registry import Registry

Verb = Callable[[list[str]], int]

VERBS: Registry[Verb] = Registry("verb")
VERBS.add("dataset", "image_classification.cli.dataset:main")
VERBS.add("doctor", "image_classification.cli.doctor:main")
VERBS.add("report", "image_classification.cli.report:main")

_USAGE = """usage: python -m image_classification VERB …

  dataset check DIR     decode every image once; say what would break a run
  dataset prepare DIR   put ImageNet's official archives, or a flat val/, into class folders
  dataset pack DIR      write a data set into TFRecord, RecordIO or WebDataset shards
  dataset fake DIR      make an ImageNet-like data set for trying things out
  dataset demo OUT      write the demo data set (handwritten digits, JPEG class folders) to OUT
  doctor                look for what would break a long run on this machine
  report combine RUN…   runs over seeds, precisions or devices: mean, spread, verdict on the mean
  report compare A B    the same run in two environments: which figures regressed
  report history DIR    all runs below DIR in order of time, with what regressed
  report plots RUN…     pictures of one run, or of several over one another

Each has its own --help.
Runs are started with launch.py; see launch.py --help.
"""


def main(argv: Sequence[str]) -> int:
    """Run a verb; return the exit code. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if argv[0] not in VERBS:
        raise ConfigError(unknown("verb", argv[0], VERBS))
    return VERBS.get(argv[0])(list(argv[1:]))


if __name__ == "__main__":
    sys.exit(exit_with_one_line(main, sys.argv[1:]))
