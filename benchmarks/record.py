"""What every benchmark writes beside its figures: when, on what, with which versions."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# So that the scripts measure this checkout, installed or not.
sys.path.insert(0, str(ROOT))

from image_classification.devices.accelerator import cpu_model  # noqa: E402


def write_record(
    name: str, figures: Mapping[str, Any], packages: Iterable[str], folder: Path = RESULTS
) -> Path:
    """Write ``folder/<name>-<UTC date>.json`` and return its path; a day's last record stays.

    packages: distributions whose versions the figures depend on.
    """
    now = datetime.now(timezone.utc)
    record = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "num_logical_cpus": len(os.sched_getaffinity(0)),
            "load_average_1_min": round(os.getloadavg()[0], 2),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        **figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
