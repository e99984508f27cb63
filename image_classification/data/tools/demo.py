"""A small real data set made on the spot: scikit-learn's handwritten digits as JPEG folders.

1,797 scans of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits, as scikit-learn ships
them), 1,437 to train and 360 to validate. No download.
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
"""Raise the version with anything that changes the files."""

_IMAGE_SIZE_PX = 64
_JPEG_QUALITY = 95
_VAL_IMAGES = 360
_SPLIT_SEED = 0
_MANIFEST = "manifest.json"
_ATTEMPTS = 5


def resolve_data_path(path: str) -> Path:
    """Return the folder that ``data.path`` means; ``demo`` is made where it is missing.

    Raises:
        DataError: the demo data set cannot be written, or ``synthetic``, which is no folder.
    """
    if path == "demo":
        return ensure_demo()
    if path == "synthetic":
        raise DataError(
            "'synthetic' is not a folder of images: set data.backend to synthetic with it"
        )
    return Path(path)


def ensure_demo(root: Path | None = None) -> Path:
    """Return the demo data set's folder below the cache ``root``, making it where needed.

    It is renamed into place whole, so any number of processes may ask at once; one that lacks
    files is made anew. ``root`` defaults to $IMAGE_CLASSIFICATION_CACHE, then
    $XDG_CACHE_HOME/image-classification, then ~/.cache/image-classification.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = (cache_root() if root is None else root) / DEMO_FOLDER
    try:
        if not _is_complete(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _place(folder)
    except OSError as error:
        raise DataError(
            f"cannot write the demo data set to {folder}: {error.strerror}: set {CACHE_VARIABLE} "
            f"to a folder that can be written"
        ) from error
    return folder


def write_demo(folder: Path) -> Path:
    """Write the demo data set to ``folder`` itself (new, empty, or already the demo data set).

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not _is_complete(folder):
                raise DataError(f"{folder} is not empty: name a new folder for the demo data set")
            return folder
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        _place(folder.absolute())
    except OSError as error:
        raise DataError(
            f"cannot write the demo data set to {folder}: {error.strerror}: name another folder"
        ) from error
    return folder


def cache_root() -> Path:
    """Return the folder for what is made once; see `ensure_demo`.

    Raises:
        DataError: there is no home folder to put it in.
    """
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification has relative ones ignored
        return Path(xdg) / "image-classification"
    try:
        return Path.home() / ".cache" / "image-classification"
    except RuntimeError as error:
        raise DataError(
            f"no home folder to keep the demo data set in: set {CACHE_VARIABLE} to a folder that "
            f"can be written"
        ) from error


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return bool(manifest == _manifest(folder)) and manifest["train"]["images"] > 0


def _manifest(folder: Path) -> dict[str, object]:
    """Count what is there: equality with the manifest on disk means that nothing is missing."""
    content: dict[str, object] = {"name": DEMO_FOLDER}
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*.jpg"))
        content[split] = {"images": len(files), "bytes": sum(f.stat().st_size for f in files)}
    return content


def _place(folder: Path) -> None:
    """Build beside ``folder``, then rename; a process that finished first has made the same."""
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
    # Both imports together take over a second, and the data set is made once.
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = np.asarray(digits.target, dtype=np.int64)
    is_val = _val_mask(labels)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        target = folder / ("val" if is_val[index] else "train") / str(label)
        target.mkdir(parents=True, exist_ok=True)
        size = (_IMAGE_SIZE_PX, _IMAGE_SIZE_PX)
        scan = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
        scan.save(target / f"{index:04d}.jpg", quality=_JPEG_QUALITY)
    manifest = json.dumps(_manifest(folder), indent=2) + "\n"
    (folder / _MANIFEST).write_text(manifest, encoding="utf-8")


def _val_mask(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Choose the validation images: each class's share, rounded to the largest remainders."""
    counts = np.bincount(labels)
    exact = counts * (_VAL_IMAGES / len(labels))
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - quota), kind="stable")
    quota[by_remainder[: _VAL_IMAGES - int(quota.sum())]] += 1
    draws = np.random.Philox(np.random.SeedSequence(_SPLIT_SEED)).random_raw(len(labels))
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label, number in enumerate(quota):
        members = np.flatnonzero(labels == label)
        mask[members[np.argsort(draws[members], kind="stable")[:number]]] = True
    return mask
