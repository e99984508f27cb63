"""Checks of what this process is inside of: the container, its user, its home folder."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from image_classification.core.checkup import Check, ok, warn
from image_classification.core.mounts import Mount, mount_of

_CACHE_REMEDY = (
    "mount a home folder that can be written, or set HOME to one (the demo data set and compiled "
    "code are kept there; IMAGE_CLASSIFICATION_CACHE moves the first)"
)


def check_container(kind: str, image: str, mounts: list[Mount]) -> Check:
    """Say which container this is, of which image, and whether its root can be written.

    image: see `image_text`.
    """
    of_root = mount_of(Path("/"), mounts)
    is_read_only = of_root.is_read_only if of_root is not None else False
    where = f"{kind} container".lstrip() if kind or image else "no container"
    if image:
        where += f", {image}"
    found = f"{where}; root file system {'read-only' if is_read_only else 'writable'}"
    return ok("container", found)


def check_user(kind: str, user_id: int) -> Check:
    """Judge the user: one without a name breaks torch's compiler, root owns what it writes."""
    name, found = "user", f"id {user_id}"
    try:
        found += f" ({getpass.getuser()})"
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return warn(
            name,
            f"{found} has no name, which torch's compiler asks for",
            f"set one: docker run -e USER=user{user_id}, or mount /etc/passwd read-only",
        )
    if kind in ("docker", "podman") and user_id == 0:
        found += "; what it writes to mounted folders belongs to root"
    return ok(name, found)


def check_home(environ: Mapping[str, str]) -> Check:
    """Write to the home folder, where caches go."""
    name = "home"
    home = environ.get("HOME")
    if not home:
        return warn(name, "HOME is not set", _CACHE_REMEDY)
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=home):
            pass
    except OSError as error:
        return warn(name, f"{home}: {os.strerror(error.errno or 0)}", _CACHE_REMEDY)
    return ok(name, f"{home} can be written")
