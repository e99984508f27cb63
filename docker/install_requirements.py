#!/usr/bin/env python3
"""Install what a base image lacks, from the pinned files in docker/requirements.

Used by Dockerfile:

    python docker/install_requirements.py

A base that brings torch (NVIDIA's PyTorch images, a vendor's own) keeps every package it has, at
its version: only what framework.txt names and the base lacks is added. Any other base gets every
package of plain.txt. pip obeys the base's own constraints (PIP_CONSTRAINT) in either case.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import distributions
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
# The loader's own list: DALI opens these libraries by name.
LIBRARY_LIST = Path("/etc/ld.so.conf.d/image-classification.conf")


def pinned(file: Path) -> dict[str, str]:
    """Return package -> its whole entry: the pin and its hashes, as pip reads them."""
    entries = {}
    # An entry goes on while lines end with a backslash.
    joined = re.sub(r"\\\n", "", file.read_text(encoding="utf-8"))
    for line in joined.splitlines():
        if line.strip() and not line.startswith("#"):
            entries[normal(line.partition("==")[0])] = line
    return entries


def installed() -> dict[str, str]:
    """Return package -> version, of everything this interpreter finds."""
    found = {}
    for distribution in distributions():
        # Debris of a package that was removed by hand has no name.
        if distribution.metadata["Name"]:
            found[normal(distribution.metadata["Name"])] = distribution.version
    return found


def normal(name: str) -> str:
    """Return a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def main() -> None:
    """Install; exit with one line where the base cannot be built on."""
    before = installed()
    keep = "torch" in before
    entries = pinned(REQUIREMENTS / ("framework.txt" if keep else "plain.txt"))
    wanted = {name: entry for name, entry in entries.items() if not (keep and name in before)}
    own = len(entries) - len(wanted)
    print(f"installing {len(wanted)} packages, {own} are the base's own", flush=True)
    if wanted:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "requirements.txt"
            file.write_text("\n".join(wanted.values()) + "\n", encoding="utf-8")
            # --no-deps: the file names every package there is to be.
            command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--no-deps"]
            command += ["--require-hashes", "--only-binary=:all:", "--root-user-action=ignore"]
            # Some bases reserve their Python for the system's packages; this one is the program's.
            environment = {**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"}
            command += ["--requirement", str(file)]
            done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            sys.exit(f"error: pip ended with {done.returncode}; what it says is above")
    after = installed()
    changed = {n: (v, after.get(n)) for n, v in before.items() if keep and after.get(n) != v}
    if changed:
        sys.exit(f"error: packages of the base were changed: {changed}")
    list_libraries()


def list_libraries() -> None:
    """Let the loader find NVIDIA's image primitives (NPP) where the wheel of them is installed."""
    folder = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "npp" / "lib"
    if folder.is_dir():
        LIBRARY_LIST.write_text(f"{folder}\n", encoding="utf-8")
        subprocess.run(["ldconfig"], check=True)


if __name__ == "__main__":
    main()
