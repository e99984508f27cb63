"""The list of broken images of a data set: ``<data root>/quarantine.json``.

``{"format": 1, "images": {"train/n01440764/n01440764_18.JPEG": "the file is empty"}}``: each image
by its name in the split's index, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from image_classification.core.errors import DataError
from image_classification.core.files import replacement_file

QUARANTINE_FILE = "quarantine.json"

_FORMAT = 1


def load(root: Path) -> dict[str, str]:
    """Return the images listed in ``root/quarantine.json``, name -> reason; empty without a file.

    Raises:
        DataError: the file cannot be read, or is not such a list.
    """
    path = root / QUARANTINE_FILE
    remedy = "remove it, or write a new one with `python -m image_classification dataset check`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}: check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged (not JSON): {remedy}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path} is not a quarantine list of format {_FORMAT}: {remedy}")
    images = content.get("images")
    if not isinstance(images, dict) or not all(isinstance(r, str) for r in images.values()):
        raise DataError(f"{path} is damaged ('images' must map names to reasons): {remedy}")
    return images


def save(path: Path, images: Mapping[str, str]) -> None:
    """Write the list ``images`` (name -> reason) to ``path`` atomically.

    Raises:
        DataError: ``path`` cannot be written.
    """
    content = {"format": _FORMAT, "images": dict(sorted(images.items()))}
    try:
        with replacement_file(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise DataError(
            f"cannot write the quarantine list to {path}: {error.strerror}: name a writable file "
            f"with -o"
        ) from error
