"""Class folders of images: which file names are images, and what a folder's classes are.

Nothing here opens an image, so that a run can be explained without NumPy or torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from image_classification.core.units import counted

HEIC_EXTENSIONS = (".heic", ".heif")
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(HEIC_EXTENSIONS if find_spec("pillow_heif") else ()),
)
"""In lower case; matched in any case, since ImageNet has ``.JPEG``. HEIC needs pillow-heif."""

SPLITS = ("train", "val")
CLASSES_FILE = "classes.json"
"""The class names of a packed data set, a JSON list in its folder."""

_IMAGENET_CLASSES = 1000


def is_image_name(name: str) -> bool:
    """Return whether the file ``name`` is taken as an image; hidden files are not."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."


def folder_names(folder: Path) -> list[str]:
    """Return the sorted names of the folders in ``folder``, without hidden ones.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def has_only_class_folders(root: Path) -> bool:
    """Return whether ``root`` holds ``<class>/<image>``, without train/ and val/ above them.

    Raises:
        OSError: it cannot be read.
    """
    names = folder_names(root)
    return not set(names) & set(SPLITS) and any(_has_image(root / name) for name in names)


def _has_image(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) for entry in entries)


def own_classes(path: str) -> tuple[str, ...] | None:
    """Return the class names of the user's own data set; None for any other data set.

    Every folder in a known layout counts as the user's own, except copies and parts of ImageNet:
    those have 1000 classes, or name all of them by synset (``n01440764``).
    """
    root = Path(path)
    try:
        split = next((root / split for split in SPLITS if (root / split).is_dir()), None)
        if (root / CLASSES_FILE).is_file():
            names = json.loads((root / CLASSES_FILE).read_text(encoding="utf-8"))
        elif split is not None:
            names = folder_names(split)
        else:
            names = folder_names(root) if has_only_class_folders(root) else []
    except (OSError, ValueError):  # opening the data set says what is wrong
        return None
    if not isinstance(names, list) or not names or len(names) == _IMAGENET_CLASSES:
        return None
    is_imagenet = all(re.fullmatch(r"n\d{8}", str(name)) for name in names)
    return None if is_imagenet else tuple(map(str, names))


def count_skipped(folder: Path) -> dict[str, int]:
    """Count the entries of ``folder`` that are not images: extension -> number.

    Folders count as ``folders``, files without an extension as ``no extension``; hidden entries
    are not counted.

    Raises:
        OSError: it cannot be read.
    """
    counts: dict[str, int] = {}
    with os.scandir(folder) as entries:  # knows folders without a system call per entry
        for entry in entries:
            if is_image_name(entry.name) or entry.name[0] == ".":
                continue
            extension = os.path.splitext(entry.name)[1].lower()
            kind = "folders" if entry.is_dir() else extension or "no extension"
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def skipped_text(counts: Mapping[str, int], where: str) -> str:
    """Return ``skipped 12 files in photos: 10 .heic (install pillow-heif), 2 .txt``."""
    files = {kind: n for kind, n in counts.items() if kind != "folders"}
    parts = [
        f"{n:,} {kind}{' (install pillow-heif to read them)' if kind in HEIC_EXTENSIONS else ''}"
        for kind, n in sorted(files.items(), key=lambda item: (-item[1], item[0]))
    ]
    if folders := counts.get("folders"):
        what = counted(folders, "folder")
        parts.append(f"{what} inside class folders (their images are not read)")
    return f"skipped {counted(sum(files.values()), 'file')} in {where}: {', '.join(parts)}"
