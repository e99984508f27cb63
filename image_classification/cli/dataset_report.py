"""What ``dataset check`` found, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from image_classification.data.check import CheckReport, SplitReport, Spread

_SHOWN = 5
_IMAGENET = {
    "complete": "ImageNet-1k, complete",
    "incomplete": "ImageNet-1k's classes, not all of its images",
}


def check_json(report: CheckReport, list_file: Path | None) -> str:
    """Return everything in ``report``, every name included; list_file: the quarantine list."""
    content = dataclasses.asdict(report)
    content["is_usable"] = report.is_usable
    content["quarantine"] = {
        "file": None if list_file is None else str(list_file),
        "images": report.broken,
    }
    return json.dumps(content, indent=1)


def check_text(report: CheckReport) -> str:
    """Return a summary; of long lists the first names."""
    lines = [f"data set  {report.path}"]
    if report.imagenet_1k in _IMAGENET:
        lines.append(f"          {_IMAGENET[report.imagenet_1k]}")
    lists = {split.classes: None for split in report.splits.values()}
    lines += [f"classes   {len(classes):,}: {_some(classes)}" for classes in lists]
    for name, split in report.splits.items():
        lines += _split_lines(name, split)
    lines += [f"note      {note}" for note in report.notes]
    lines += [f"problem   {problem}" for problem in report.problems]
    if report.is_usable:
        lines.append("every image can be decoded: ready to train on")
    return "\n".join(lines)


def _split_lines(name: str, split: SplitReport) -> list[str]:
    size = f"{split.total_bytes / 1e6:,.1f} MB"
    lines = [
        f"{name:<10}{split.num_images:,} images ({split.format}, {size})",
        _spread_line("a class", split.images_per_class, ""),
        _spread_line("width", split.width_px, " px"),
        _spread_line("height", split.height_px, " px"),
        _spread_line("file size", split.bytes, " bytes"),
        f"  formats    {_counts(split.formats)}",
        f"  colours    {_counts(split.modes)}",
    ]
    for kind, names in split.odd.items():
        if names:
            lines.append(f"  {kind}: {len(names):,}: {_some(names)}")
    for kind, names in split.broken.items():
        if names:
            lines.append(f"  BROKEN, {kind}: {len(names):,}: {_some(names)}")
    return [line for line in lines if line]


def _spread_line(what: str, spread: Spread | None, unit: str) -> str:
    if spread is None:
        return ""
    values = f"{spread.min:,.0f} / {spread.median:,.0f} / {spread.max:,.0f}{unit}"
    return f"  {what:<10} {values} (least / median / most)"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none readable"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
