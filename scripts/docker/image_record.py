#!/usr/bin/env python3
"""Write the size of an image and of its layers as JSON. Used by test_image.sh.

``image_record.py BUILD_S INSPECT HISTORY OUT``: INSPECT is the output of ``docker image inspect``,
HISTORY that of ``docker history --format '{{json .}}'``.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
SHOWN = 110


def size_bytes(text: str) -> int:
    """Return the bytes of a size as docker prints it, such as "8.78GB"."""
    match = re.fullmatch(r"([\d.]+)(B|kB|MB|GB)", text)
    if match is None:
        raise ValueError(f"docker printed the layer size {text!r}")
    return round(float(match[1]) * UNITS[match[2]])


def record(
    build_s: int, inspected: dict[str, Any], history: list[dict[str, str]]
) -> dict[str, Any]:
    """Return date, base, size and the layers that contain files, lowest first.

    build_s: duration of the build; seconds if all layers were cached.
    """
    labels = inspected["Config"]["Labels"] or {}
    layers = []
    for layer in reversed(history):
        size = size_bytes(layer["Size"])
        if size:
            made_by = re.sub(r"\s+", " ", layer["CreatedBy"])
            made_by = re.sub(r"^(\|\d+ .*?)?/bin/sh -c (#\(nop\) )?", "", made_by)
            layers.append({"size_bytes": size, "made_by": made_by[:SHOWN] or "the base image"})
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": labels.get("org.opencontainers.image.revision"),
        "base": labels.get("org.opencontainers.image.base.name"),
        "size_bytes": inspected["Size"],
        "build_s": build_s,
        "layers": layers,
    }


def main(build_s: str, inspect_file: str, history_file: str, out: str) -> None:
    """Write ``out`` and print a summary."""
    (inspected,) = json.loads(Path(inspect_file).read_text(encoding="utf-8"))
    lines = Path(history_file).read_text(encoding="utf-8").splitlines()
    content = record(int(build_s), inspected, [json.loads(line) for line in lines])
    Path(out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"image {content['size_bytes'] / 1e9:.2f} GB on {content['base']}, built in {build_s} s")
    for layer in content["layers"]:
        print(f"{layer['size_bytes'] / 1e6:9.1f} MB  {layer['made_by'][:80]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
