"""How a command ends: a user's mistake is one line on stderr, anything else a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

from image_classification.core.errors import UserError
from image_classification.core.terminal import mute_stdout


def exit_with_one_line(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run ``main(argv)``; print ``error: …`` for a UserError and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a character gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        return main(argv)
    except UserError as error:
        # Under torchrun every process prints; say which one this is.
        rank = os.environ.get("RANK", "0")
        where = f"[rank {rank}] " if rank != "0" else ""
        print(f"error: {where}{error.message}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has gone; point stdout elsewhere so that exit stays quiet.
        mute_stdout()
        return 0
