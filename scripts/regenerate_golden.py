#!/usr/bin/env python3
"""Rewrite the golden files: ``python scripts/regenerate_golden.py [configs] [models]``.

Review the difference: a changed line of a golden file is a changed configuration or network, and
needs a line in CHANGELOG.md with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"

sys.path.insert(0, str(ROOT))


def write_configs() -> None:
    """Write every listed run's resolved configuration."""
    from tests.support.golden_configs import dump_golden, golden_configs

    path = GOLDEN / "configs" / "runs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_golden(golden_configs()), encoding="utf-8")


def write_models() -> None:
    """Write every registered model's tensors, parameter count and multiply-adds."""
    from image_classification.models import list_models
    from tests.support.models import describe

    folder = GOLDEN / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for name in list_models():
        text = json.dumps(describe(name), indent=2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


WRITERS = {"configs": write_configs, "models": write_models}


def main() -> None:
    """Write the groups asked for; all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=" or ".join(WRITERS))
    groups = parser.parse_args().groups or list(WRITERS)
    for group in groups:
        if group not in WRITERS:
            parser.error(f"unknown group {group!r} (valid: {', '.join(WRITERS)})")
    for group in groups:
        WRITERS[group]()


if __name__ == "__main__":
    main()
