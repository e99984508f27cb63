"""Recognize how a data set is stored, and index it.

``folder``: ``train/<class>/<image>`` and ``val/<class>/<image>``. ``tfrecord``, ``recordio`` and
``webdataset``: shards in the data set's folder, or in its train/ and val/ folders (see the modules
of these names). The same data set gives the same images and labels in every format.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from image_classification.core.errors import DataError
from image_classification.data.formats import recordio, tfrecord, webdataset
from image_classification.data.formats.index import FolderIndex, Index, Names
from image_classification.data.formats.shards import (
    ShardFormat,
    check_count,
    named_classes,
    open_shards,
)
from image_classification.data.tools import quarantine

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
"""In lower case; matched in any case, since ImageNet has ``.JPEG``."""

SPLITS = ("train", "val")
AUTO = "auto"
"""Value of ``data.format`` that asks to recognize the layout."""

FOLDER = "folder"
SHARD_FORMATS: dict[str, ShardFormat] = {
    f.name: f for f in (tfrecord.FORMAT, recordio.FORMAT, webdataset.FORMAT)
}
FORMATS = (FOLDER, *SHARD_FORMATS)
_MAX_SHOWN = 3


def open_index(root: Path, split: str, num_classes: int | None, layout: str = AUTO) -> Index:
    """Index ``split`` of the data set at ``root`` for a model of ``num_classes``.

    layout: ``data.format``. num_classes: None accepts any number. Images in ``quarantine.json``
    are left out of train; val must be complete.

    Raises:
        DataError: no data set there, not in its layout (see `index_folder` and
            `image_classification.data.formats.shards.open_shards`), or quarantined images in val.
    """
    layout = recognize(root, split, layout)
    index: Index
    if layout == FOLDER:
        index = index_folder(root, split, num_classes)
    else:
        index = open_shards(SHARD_FORMATS[layout], root, split, num_classes)
    kept = index.without(set(quarantine.load(root)))
    if split == "val" and kept.num_quarantined:
        raise DataError(
            f"{kept.num_quarantined} of the {len(index)} validation images of {root} are in "
            f"{quarantine.QUARANTINE_FILE}: validation skips none: replace them and check again"
        )
    if not len(kept):
        raise DataError(f"all {split} images of {root} are in {quarantine.QUARANTINE_FILE}")
    return kept


def index_folder(root: Path, split: str, num_classes: int | None) -> FolderIndex:
    """Index ``root/split/<class>/<image>``.

    Classes are the sorted names of the split's folders. Names that start with a dot are skipped,
    and files without one of `IMAGE_EXTENSIONS`. No image is opened.

    Raises:
        DataError: no data set there, the split is missing or flat, a class is empty, train and
            val have different classes, or their number is not the model's.
    """
    classes = _check_folder(root, split, num_classes)
    relative: list[bytes] = []
    counts: list[int] = []
    for name in classes:
        folder = root / split / name
        files = _image_names(folder)
        if not files:
            raise DataError(
                f"class folder {folder} holds no image ({', '.join(IMAGE_EXTENSIONS)}): fill it, "
                f"or remove it from train/ and val/"
            )
        relative.extend(os.fsencode(f"{split}/{name}/{file}") for file in files)
        counts.append(len(files))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return FolderIndex(root, split, classes, labels, Names.of(relative))


def check_classes(root: Path, split: str, num_classes: int, layout: str = AUTO) -> None:
    """Check the folders and class names of a data set, without listing or opening its images.

    Class folders of the other split are compared if they exist; evaluation needs only ``val/``.

    Raises:
        DataError: as for `open_index`.
    """
    if recognize(root, split, layout) == FOLDER:
        _check_folder(root, split, num_classes)
    else:
        named = named_classes(root)
        if named is not None:
            check_count(root, len(named), num_classes)


def _check_folder(root: Path, split: str, num_classes: int | None) -> tuple[str, ...]:
    """Return the classes of ``split``; compare them with the other split's and the model's."""
    classes = _class_names(root / split)
    other = SPLITS[1 - SPLITS.index(split)]
    if (root / other).is_dir():
        found = {split: set(classes), other: set(_class_names(root / other))}
        parts = []
        for name, extra in (
            ("train", found["train"] - found["val"]),
            ("val", found["val"] - found["train"]),
        ):
            if extra:
                more = f" and {len(extra) - _MAX_SHOWN} more" if len(extra) > _MAX_SHOWN else ""
                parts.append(f"only in {name}/: {', '.join(sorted(extra)[:_MAX_SHOWN])}{more}")
        if parts:
            raise DataError(
                f"train/ and val/ of {root} have different classes ({'; '.join(parts)}): both "
                f"need the same class folders"
            )
    if num_classes is not None:
        check_count(root / split, len(classes), num_classes, "class folders")
    return classes


def recognize(root: Path, split: str, layout: str = AUTO) -> str:
    """Return the layout of the data set at ``root``, one of `FORMATS`; ``layout`` if it is there.

    Raises:
        DataError: nothing there, nothing recognized, not ``layout``, or several layouts at once.
    """
    _check_root(root)
    folder = root / split
    if layout == FOLDER and not folder.is_dir():
        raise DataError(f"{root} has no {split}/ folder: {_remedy(root)}")
    if layout in SHARD_FORMATS and not SHARD_FORMATS[layout].find(root, split):
        raise DataError(
            f"{root} has no {split} shards of format {layout}: give --set data.format=auto to "
            f"take what is there"
        )
    if layout != AUTO:
        return layout
    found = [name for name, kind in SHARD_FORMATS.items() if kind.find(root, split)]
    try:
        # If there are shards, train/ may be the folder that holds them.
        if folder.is_dir() and (not found or _folder_names(folder)):
            found.insert(0, FOLDER)
    except OSError as error:
        raise _unreadable(root, error) from error
    if not found:
        raise DataError(f"{root} has no {split}/ folder and no {split} shards: {_remedy(root)}")
    if len(found) > 1:
        raise DataError(
            f"{root} holds its {split} images as {' and as '.join(found)}: choose one with --set "
            f"data.format={found[0]}"
        )
    return found[0]


def has_split(root: Path, split: str) -> bool:
    """Return whether ``root`` has images of ``split``, in any format.

    Raises:
        DataError: no data set there.
    """
    _check_root(root)
    return (root / split).is_dir() or any(f.find(root, split) for f in SHARD_FORMATS.values())


def _check_root(root: Path) -> None:
    try:
        mode = os.stat(root).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no data set at {root}: {_remedy(root)}") from None
    except OSError as error:
        raise _unreadable(root, error) from error
    if not stat.S_ISDIR(mode):
        raise DataError(f"data set {root} is not a folder: {_remedy(root)}")


def _remedy(root: Path) -> str:
    return (
        "give a folder with train/<class>/ and val/<class>/ (in Docker, mount it: "
        f"docker run -v /your/imagenet:{root.absolute()} …), or 'demo' (small real images, made "
        "on the spot), or 'synthetic'"
    )


def _folder_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = _folder_names(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    if names:
        return tuple(names)
    num_images = len(_image_names(folder))
    if num_images:
        raise DataError(
            f"{folder} holds {num_images} images and no class folders, as the ImageNet validation "
            f"archive unpacks: sort them into {folder.name}/<class>/ with `python -m "
            f"image_classification dataset prepare {folder.parent}`"
        )
    raise DataError(
        f"{folder} has no class folders: images belong in {folder.name}/<class>/, one folder per "
        f"class"
    )


def _image_names(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(n for n in names if n.lower().endswith(IMAGE_EXTENSIONS) and n[0] != ".")


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {folder}: {error.strerror}: check its permissions and its mount")
