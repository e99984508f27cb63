"""The doctor's look at NVIDIA Apex."""

from __future__ import annotations

from image_classification.cli.isolated import IsolatedError, call
from image_classification.core.apex import find_apex
from image_classification.core.checkup import Check
from image_classification.engine import probe_software

_LIMIT_S = 60.0


def check_apex() -> Check:
    """Look for Apex, and where it could be used, import it in a process of its own."""
    apex, error = find_apex(), ""
    if apex is not None and apex.is_nvidia and apex.has_kernels:
        try:
            call("image_classification.engine.probe_software:import_apex", limit_s=_LIMIT_S)
        except IsolatedError as failed:
            error = str(failed)
    return probe_software.check_apex(apex, error)
