"""Which file system a path lies on, from Linux's mount table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p")
IN_MEMORY = ("tmpfs", "ramfs")
OVERLAY = ("overlay", "aufs")


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``. source_root: what of the file system is mounted."""

    point: str
    kind: str
    source_root: str
    is_read_only: bool


def read_mounts(root: Path = Path("/")) -> list[Mount]:
    """Return the mounts this process sees; none where the system does not tell."""
    file = root / "proc/self/mountinfo"
    if not file.is_file():
        return []
    mounts = []
    for line in file.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        options = fields[5].split(",")
        mounts.append(
            Mount(_plain(fields[4]), right.split()[0], _plain(fields[3]), "ro" in options)
        )
    return mounts


def _plain(text: str) -> str:
    """Undo the table's octal escapes of space, tab, newline and backslash."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount that ``path`` lies on: the longest, of equals the last."""
    real = os.path.realpath(path)
    found = None
    for mount in mounts:
        inside = mount.point == "/" or real == mount.point or real.startswith(mount.point + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found
