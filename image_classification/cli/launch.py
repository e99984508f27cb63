"""``launch.py``: list, explain or run named configurations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from image_classification.cli.outcome import exit_with_one_line
from image_classification.cli.parse import parse


def _main(argv: Sequence[str]) -> int:
    request = parse(argv)
    # Imported on demand: --list and --explain answer at once, without torch.
    if request.listing is not None:
        from image_classification.cli.listing import print_listing

        print_listing(request)
        return 0
    if request.explain:
        from image_classification.cli.explain import print_explanation

        print_explanation(request)
        return 0
    from image_classification.cli.drive import drive

    return drive(request, str(Path(sys.argv[0]).resolve()), argv)


def main(argv: Sequence[str]) -> int:
    """Run ``launch.py`` with ``argv``; return its exit code (see core.errors)."""
    return exit_with_one_line(_main, argv)
