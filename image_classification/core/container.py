"""Which container this process is in, and which image that was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from image_classification.core.mounts import Mount

IMAGE_VARIABLE = "IMAGE_CLASSIFICATION_IMAGE"
"""Name and version of the image, such as ``image-classification 0.1.0``."""
BASE_VARIABLE = "IMAGE_CLASSIFICATION_BASE"
"""Name of the image it was built from, such as ``python:3.11-slim-bookworm``."""
REVISION_VARIABLE = "IMAGE_CLASSIFICATION_REVISION"
"""Commit whose files are in the image; "" where unknown."""


def container_kind(environ: Mapping[str, str], mounts: list[Mount], root: Path = Path("/")) -> str:
    """Return ``kubernetes``, ``docker``, ``podman``, ``apptainer``, ``enroot``, or "" for none.

    Another name that the container itself gives (systemd's ``container`` variable) is returned.
    """
    # Apptainer in a pod, or on a machine that is itself a container, is what the run is in.
    if "APPTAINER_CONTAINER" in environ or "SINGULARITY_CONTAINER" in environ:
        return "apptainer"
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".singularity.d").is_dir():
        return "apptainer"
    # Enroot leaves no mark but the source of what it mounts over the root and /etc.
    etc = [m for m in mounts if m.point == "/" or m.point.startswith("/etc/")]
    if any("enroot" in m.source_root.split("/") for m in etc):
        return "enroot"
    return environ.get("container", "")


def image_text(environ: Mapping[str, str]) -> str:
    """Return the image in words, ``image-classification 0.1.0 on python:3.11-slim``.

    "" where this is no image of the project.
    """
    image, base = environ.get(IMAGE_VARIABLE, ""), environ.get(BASE_VARIABLE, "")
    return f"{image} on {base}" if image and base else image


def container_text(kind: str, environ: Mapping[str, str]) -> str:
    """Return kind and image, ``docker, image-classification 0.1.0 on python:3.11-slim``.

    The kind alone outside the project's images; "" outside containers.
    """
    image = image_text(environ)
    # An engine that leaves no mark still passes on the image's environment.
    return f"{kind or 'container'}, {image}" if image else kind
