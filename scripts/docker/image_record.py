#!/usr/bin/env python3
"""Write down how large an image is, layer by layer. Used by test_image.sh.

image_record.py BUILD_S INSPECT HISTORY OUT: the first two files are what ``docker image inspect``
and ``docker history --format '{{json .}}'`` said.
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
    """Return bytes of docker's own "8.78GB", which has three digits."""
    match = re.fullmatch(r"([\d.]+)(B|kB|MB|GB)", text)
    if match is None:
        raise ValueError(f"docker calls a layer's size {text!r}")
    return round(float(match[1]) * UNITS[match[2]])


def record(
    build_s: int, inspected: dict[str, Any], history: list[dict[str, str]]
) -> dict[str, Any]:
    """Return date, base, size and layers, the lowest first; layers without files are left out.

    build_s: of the build that made it; one that found its layers made takes seconds.
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
    """Write ``out`` and print it in a few lines."""
    (inspected,) = json.loads(Path(inspect_file).read_text(encoding="utf-8"))
    lines = Path(history_file).read_text(encoding="utf-8").splitlines()
    content = record(int(build_s), inspected, [json.loads(line) for line in lines])
    Path(out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"image {content['size_bytes'] / 1e9:.2f} GB on {content['base']}, built in {build_s} s")
    for layer in content["layers"]:
        print(f"{layer['size_bytes'] / 1e6:9.1f} MB  {layer['made_by'][:80]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
