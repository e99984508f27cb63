#!/usr/bin/env python3
"""Install the packages that a base image lacks, from the pinned files in docker/requirements.

Used by Dockerfile:

    python docker/install_requirements.py

A base that brings torch (NVIDIA's PyTorch images, other vendors' images) keeps all its packages at
their versions; only the packages of framework.txt that it lacks are added. Any other base gets all
packages of plain.txt. pip respects the base's constraints (PIP_CONSTRAINT) in both cases.
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
# Read by ldconfig: DALI opens the NPP libraries by name.
LIBRARY_LIST = Path("/etc/ld.so.conf.d/image-classification.conf")


def pinned(file: Path) -> dict[str, str]:
    """Return the entry of each package: its pin and hashes, as pip reads them."""
    entries = {}
    # A backslash continues an entry on the next line.
    joined = re.sub(r"\\\n", "", file.read_text(encoding="utf-8"))
    for line in joined.splitlines():
        if line.strip() and not line.startswith("#"):
            entries[normal(line.partition("==")[0])] = line
    return entries


def installed() -> dict[str, str]:
    """Return the version of each installed package."""
    found = {}
    for distribution in distributions():
        # The remains of a package that was deleted by hand have no name.
        if distribution.metadata["Name"]:
            found[normal(distribution.metadata["Name"])] = distribution.version
    return found


def normal(name: str) -> str:
    """Return the normalized name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def main() -> None:
    """Install; exit with one line if the base image cannot be used."""
    before = installed()
    keep = "torch" in before
    entries = pinned(REQUIREMENTS / ("framework.txt" if keep else "plain.txt"))
    wanted = {name: entry for name, entry in entries.items() if not (keep and name in before)}
    own = len(entries) - len(wanted)
    print(f"installing {len(wanted)} packages; {own} are in the base image", flush=True)
    if wanted:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "requirements.txt"
            file.write_text("\n".join(wanted.values()) + "\n", encoding="utf-8")
            # --no-deps: the file names all packages.
            command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--no-deps"]
            command += ["--require-hashes", "--only-binary=:all:", "--root-user-action=ignore"]
            # Some bases mark their Python as managed by the system.
            environment = {**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"}
            command += ["--requirement", str(file)]
            done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            sys.exit(f"error: pip failed with exit code {done.returncode}; its messages are above")
    after = installed()
    changed = {n: (v, after.get(n)) for n, v in before.items() if keep and after.get(n) != v}
    if changed:
        sys.exit(f"error: packages of the base were changed: {changed}")
    list_libraries()


def list_libraries() -> None:
    """Add NVIDIA's image primitives (NPP) to the library path if their wheel is installed."""
    folder = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "npp" / "lib"
    if folder.is_dir():
        LIBRARY_LIST.write_text(f"{folder}\n", encoding="utf-8")
        subprocess.run(["ldconfig"], check=True)


if __name__ == "__main__":
    main()
