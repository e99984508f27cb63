"""How a command ends: a user's mistake is one line on stderr, anything else a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from image_classification.core.errors import UserError


def exit_with_one_line(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run ``main(argv)``; print ``error: …`` for a UserError and return its exit code."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
