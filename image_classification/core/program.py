"""How this program was started: for usage texts, hints, and starting the processes of a run."""

from __future__ import annotations

import sys
from pathlib import Path

_MODULE = "image_classification"
_INSTALLED = "image-classification"
_AS_MODULE = "__main__.py"


def command(verb: str) -> str:
    """Return the command for ``verb`` as a user types it, the way this process was started.

    ``image-classification VERB``, ``python -m image_classification VERB``, or ``launch.py``.
    """
    program = Path(sys.argv[0]).name
    if program == _INSTALLED:
        return f"{_INSTALLED} {verb}"
    if verb == "launch" and program != _AS_MODULE:
        return "launch.py"
    return f"python -m {_MODULE} {verb}"


def launch_words() -> tuple[str, ...]:
    """Return what follows ``python`` to start ``launch`` again from the same folder."""
    if Path(sys.argv[0]).name in (_INSTALLED, _AS_MODULE):
        return ("-m", _MODULE, "launch")
    return (sys.argv[0],)
