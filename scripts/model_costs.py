#!/usr/bin/env python3
"""Write the parameters and multiply-adds of each model: ``python scripts/model_costs.py``.

Run it after a model is added. The pictures of reports use the file, because they are drawn without
torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "image_classification" / "reporting" / "pictures" / "model_costs.yml"
SIZES_PX = (128, 160, 176, 192, 224, 256, 288, 320)

sys.path.insert(0, str(ROOT))


def costs_text() -> str:
    """Return the file's content."""
    import torch

    from image_classification.models import build, list_models
    from image_classification.models.size import count_multiply_adds, count_parameters

    lines = [
        "# Parameters and multiply-adds of every model with 1000 classes, the latter by the side",
        "# of the square image in pixels. Written by scripts/model_costs.py.",
    ]
    for name in list_models():
        with torch.device("meta"):
            parameters = count_parameters(build(name))
        counts = ", ".join(f"{size}: {count_multiply_adds(name, size)}" for size in SIZES_PX)
        lines += [f"{name}:", f"  num_parameters: {parameters}"]
        lines.append(f"  multiply_adds: {{{counts}}}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(costs_text(), encoding="utf-8")
