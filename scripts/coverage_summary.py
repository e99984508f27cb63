#!/usr/bin/env python3
"""Print the coverage of lines and branches: the totals and the files that lack most.

    python scripts/coverage_summary.py build/coverage.json

Used by ``make test``. Only the tests' own processes are measured: code that runs in the
processes which tests start is covered although it counts as missing here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NUM_FILES = 10


def summary(report: dict[str, Any]) -> str:
    """Return the summary of a report of ``coverage json``."""
    totals = report["totals"]
    lines = [
        f"coverage of the tests' own processes: lines {_share(totals, 'lines', 'statements')}, "
        f"branches {_share(totals, 'branches', 'branches')}",
        "most lines and branches missing:",
    ]
    files = sorted(report["files"].items(), key=lambda item: -_missing(item[1]["summary"]))
    for path, file in files[:NUM_FILES]:
        found = file["summary"]
        lines.append(f"  {_missing(found):4d}  {found['percent_covered']:5.1f} %  {path}")
    return "\n".join(lines)


def _share(totals: dict[str, Any], covered: str, all_of: str) -> str:
    done, total = totals[f"covered_{covered}"], totals[f"num_{all_of}"]
    return f"{100 * done / total:.1f} % ({done} of {total})"


def _missing(found: dict[str, Any]) -> int:
    missing: int = found["missing_lines"] + found["missing_branches"]
    return missing


if __name__ == "__main__":
    print(summary(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
