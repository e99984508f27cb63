"""Make the demo data set: scikit-learn's handwritten digits as JPEG folders, without a download.

1,797 scans of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits, as shipped with
scikit-learn): 1,437 for training and 360 for validation.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError

CACHE_VARIABLE = "IMAGE_CLASSIFICATION_CACHE"
DEMO_FOLDER = "digits-v1"
"""Raise the version with any change of the files."""

_IMAGE_SIZE_PX = 64
_JPEG_QUALITY = 95
_VAL_IMAGES = 360
_SPLIT_SEED = 0
_MANIFEST = "manifest.json"
_ATTEMPTS = 5


def resolve_data_path(path: str) -> Path:
    """Return the folder that ``data.path`` stands for; ``demo`` is made if it is missing.

    Raises:
        DataError: the demo data set cannot be written, or ``path`` is ``synthetic``.
    """
    if path == "demo":
        return ensure_demo()
    if path == "synthetic":
        raise DataError(
            "'synthetic' is not a folder of images: set data.backend to synthetic with it"
        )
    return Path(path)


def ensure_demo(root: Path | None = None) -> Path:
    """Return the demo data set's folder in the cache ``root``; make it if it is missing.

    Several processes may call this at once: each renames a complete data set into place. One that
    lacks files is replaced. ``root`` defaults to `cache_root`.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = (root or cache_root()) / DEMO_FOLDER
    return _make(folder, f"set {CACHE_VARIABLE} to a writable folder")


def write_demo(folder: Path) -> Path:
    """Write the demo data set to ``folder`` itself (new, empty, or already the demo data set).

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    return _make(folder, "name another folder", replace=False)


def _make(folder: Path, remedy: str, *, replace: bool = True) -> Path:
    """Make the data set unless it is complete. replace: a folder with other files."""
    try:
        if not _is_complete(folder):
            if not replace and folder.is_dir() and any(folder.iterdir()):
                raise DataError(f"{folder} is not empty: name a new folder for the demo data set")
            _place(folder.absolute())
    except OSError as error:
        raise DataError(
            f"cannot write the demo data set to {folder}: {error.strerror}: {remedy}"
        ) from error
    return folder


def cache_root() -> Path:
    """Return the cache folder: $IMAGE_CLASSIFICATION_CACHE, or below $XDG_CACHE_HOME or ~/.cache.

    Raises:
        DataError: there is no home folder.
    """
    cache = os.environ.get(CACHE_VARIABLE)
    if cache:
        return Path(cache)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification says to ignore relative paths
        return Path(xdg) / "image-classification"
    try:
        return Path.home() / ".cache" / "image-classification"
    except RuntimeError as error:
        raise DataError(
            f"no home folder to cache the demo data set in: set {CACHE_VARIABLE} to a writable "
            f"folder"
        ) from error


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return bool(manifest == _manifest(folder)) and manifest["train"]["images"] > 0


def _manifest(folder: Path) -> dict[str, object]:
    """Count the files in ``folder``; equal to the manifest on disk if nothing is missing."""
    content: dict[str, object] = {"name": DEMO_FOLDER}
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*.jpg"))
        content[split] = {"images": len(files), "bytes": sum(f.stat().st_size for f in files)}
    return content


def _place(folder: Path) -> None:
    """Build beside ``folder``, then rename; another process may have placed the same already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / "built"
        _build(built)
        for attempt in range(_ATTEMPTS):
            try:
                os.rename(built, folder)  # replaces an empty folder, refuses a filled one
                return
            except OSError:
                if _is_complete(folder):
                    return
                if attempt == _ATTEMPTS - 1 or not folder.is_dir():
                    raise
            try:
                os.rename(folder, Path(scratch) / f"incomplete-{attempt}")
            except FileNotFoundError:
                continue


def _build(folder: Path) -> None:
    # These imports take over a second and are needed only once.
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    is_val = _val_mask(digits.target)
    for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        target = folder / ("val" if is_val[index] else "train") / str(label)
        target.mkdir(parents=True, exist_ok=True)
        size = (_IMAGE_SIZE_PX, _IMAGE_SIZE_PX)
        scan = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
        scan.save(target / f"{index:04d}.jpg", quality=_JPEG_QUALITY)
    manifest = json.dumps(_manifest(folder), indent=2) + "\n"
    (folder / _MANIFEST).write_text(manifest, encoding="utf-8")


def _val_mask(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Choose the validation images: the same share of each class, by largest remainders."""
    exact = np.bincount(labels) * (_VAL_IMAGES / len(labels))
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - quota), kind="stable")
    quota[by_remainder[: _VAL_IMAGES - int(quota.sum())]] += 1
    draws = np.random.Philox(np.random.SeedSequence(_SPLIT_SEED)).random_raw(len(labels))
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label, number in enumerate(quota):
        members = np.flatnonzero(labels == label)
        mask[members[np.argsort(draws[members], kind="stable")[:number]]] = True
    return mask
