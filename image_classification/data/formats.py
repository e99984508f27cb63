"""Recognise how a data set is stored, and index it.

The one layout so far is ``folder``: ``train/<class>/<image>`` and ``val/<class>/<image>``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
"""Recognised in any case; ImageNet has ``.JPEG``."""

SPLITS = ("train", "val")
AUTO = "auto"
"""``data.format`` where the layout is to be recognised."""

_SHOWN = 3


@dataclass(frozen=True)
class ImageIndex:
    """The images of one split, sorted by class and file name.

    Paths lie end to end in one byte array, so 1.28 million of them take some 40 MB and travel to
    worker processes as shared memory. labels: ``[N]`` int64, positions in ``classes``.
    path_bytes: relative to ``folder``, uint8. path_ends: ``[N]`` int64.
    """

    folder: Path
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    path_bytes: npt.NDArray[np.uint8]
    path_ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the path of image ``index``."""
        return path_at(self.folder, self.path_bytes, self.path_ends, index)


_Indexer = Callable[[Path, str, int], "ImageIndex"]


def path_at(
    folder: Path, path_bytes: npt.NDArray[np.uint8], path_ends: npt.NDArray[np.int64], index: int
) -> str:
    """Return path number ``index`` of those that lie end to end in ``path_bytes``."""
    start = 0 if index == 0 else int(path_ends[index - 1])
    return os.path.join(folder, os.fsdecode(path_bytes[start : int(path_ends[index])].tobytes()))


def index_images(root: Path, split: str, num_classes: int, layout: str = AUTO) -> ImageIndex:
    """Index ``split`` of the data set at ``root`` for a model of ``num_classes``.

    layout: ``data.format``; ``auto`` looks at what is there.

    Raises:
        DataError: no data set there, or not as its layout asks; see `index_folder`.
        ValueError: an unknown layout.
    """
    name = recognise(root, split) if layout == AUTO else layout
    if name not in _INDEXERS:
        raise ValueError(f"layout {name!r} is none of {', '.join(_INDEXERS)}")
    return _INDEXERS[name](root, split, num_classes)


def index_folder(root: Path, split: str, num_classes: int) -> ImageIndex:
    """Index ``root/split/<class>/<image>``.

    Classes are the sorted names of the split's folders; names that start with a dot are passed
    over, and so are files without an image's extension. Nothing is opened.

    Raises:
        DataError: no data set there, the split is missing or flat, a class is empty, train and
            val have different classes, or their number is not the model's.
    """
    check_classes(root, split, num_classes)
    folder = root / split
    classes = _class_names(folder)
    relative: list[bytes] = []
    counts: list[int] = []
    for name in classes:
        files = _image_names(folder / name)
        if not files:
            raise DataError(
                f"class folder {folder / name} holds no image ({', '.join(IMAGE_EXTENSIONS)}): "
                f"fill it, or remove it from train/ and val/"
            )
        relative.extend(os.fsencode(f"{name}/{file}") for file in files)
        counts.append(len(files))
    return ImageIndex(
        folder=folder,
        classes=classes,
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        path_bytes=np.frombuffer(bytearray(b"".join(relative)), dtype=np.uint8),
        path_ends=np.cumsum([len(path) for path in relative], dtype=np.int64),
    )


_INDEXERS: dict[str, _Indexer] = {"folder": index_folder}
"""A data format: its layout's name, and what indexes it."""


def check_classes(root: Path, split: str, num_classes: int) -> None:
    """Check all that a look at the class folders can tell; cheap, to be done before a run starts.

    The other split is compared where it exists: evaluating needs ``val/`` alone.

    Raises:
        DataError: as `index_images`, empty class folders apart.
    """
    recognise(root, split)
    classes = _class_names(root / split)
    other = root / SPLITS[1 - SPLITS.index(split)]
    if other.is_dir():
        _check_same(root, {split: classes, other.name: _class_names(other)})
    if len(classes) != num_classes:
        raise DataError(
            f"{root / split} has {len(classes)} class folders, the model has {num_classes} "
            f"classes: give --num_classes {len(classes)}, or the data set the model is for"
        )


def recognise(root: Path, split: str) -> str:
    """Return the layout of the data set at ``root``: ``folder``.

    Raises:
        DataError: nothing there, or nothing recognised.
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is neither 'train' nor 'val'")
    remedy = (
        "give a folder with train/<class>/ and val/<class>/ (in Docker, mount it: "
        f"docker run -v /your/imagenet:{root.absolute()} …), or 'demo' (small real images, made "
        "on the spot), or 'synthetic'"
    )
    try:
        mode = os.stat(root).st_mode
        has_split = stat.S_ISDIR(mode) and (root / split).is_dir()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no data set at {root}: {remedy}") from None
    except OSError as error:
        raise _unreadable(root, error) from error
    if not stat.S_ISDIR(mode):
        raise DataError(f"data set {root} is not a folder: {remedy}")
    if not has_split:
        raise DataError(f"{root} has no {split}/ folder: {remedy}")
    return "folder"


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error
    if names:
        return tuple(names)
    num_images = len(_image_names(folder))
    if num_images:
        raise DataError(
            f"{folder} holds {num_images} images and no class folders, as the ImageNet validation "
            f"archive unpacks: move each into {folder.name}/<class>/, with train/'s class names"
        )
    raise DataError(
        f"{folder} has no class folders: images belong in {folder.name}/<class>/, one folder a "
        f"class"
    )


def _image_names(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(
        name
        for name in names
        if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")
    )


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {folder}: {error.strerror}: check its permissions and its mount")


def _check_same(root: Path, classes: dict[str, tuple[str, ...]]) -> None:
    train, val = set(classes["train"]), set(classes["val"])
    parts = []
    for split, extra in (("train", train - val), ("val", val - train)):
        if extra:
            shown = ", ".join(sorted(extra)[:_SHOWN])
            more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
            parts.append(f"only in {split}/: {shown}{more}")
    if parts:
        raise DataError(
            f"train/ and val/ of {root} have different classes ({'; '.join(parts)}): both need "
            f"the same class folders"
        )
