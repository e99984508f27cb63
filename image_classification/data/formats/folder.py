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
        ValueError: an unknown layout or split.
    """
    name = _layout(root, split, layout)
    index: Index
    if name == FOLDER:
        index = index_folder(root, split, num_classes)
    else:
        index = open_shards(SHARD_FORMATS[name], root, split, num_classes)
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
    folder = root / split
    _check_folder(root, split, num_classes)
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
        relative.extend(os.fsencode(f"{split}/{name}/{file}") for file in files)
        counts.append(len(files))
    return FolderIndex(
        root=root,
        split=split,
        classes=classes,
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        names=Names.of(relative),
    )


def check_classes(root: Path, split: str, num_classes: int, layout: str = AUTO) -> None:
    """Check the folders and class names of a data set, without listing or opening its images.

    Class folders of the other split are compared if they exist; evaluation needs only ``val/``.

    Raises:
        DataError: as for `open_index`.
    """
    name = _layout(root, split, layout)
    if name == FOLDER:
        _check_folder(root, split, num_classes)
        return
    named = named_classes(root)
    if named is not None:
        check_count(root, len(named), num_classes)


def _check_folder(root: Path, split: str, num_classes: int | None) -> None:
    classes = _class_names(root / split)
    other = root / SPLITS[1 - SPLITS.index(split)]
    if other.is_dir():
        _check_same(root, {split: classes, other.name: _class_names(other)})
    if num_classes is not None:
        check_count(root / split, len(classes), num_classes, "class folders")


def recognize(root: Path, split: str) -> str:
    """Return the layout of the data set at ``root``: one of `FORMATS`.

    Raises:
        DataError: nothing there, nothing recognized, or several layouts at once.
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is neither 'train' nor 'val'")
    _check_root(root)
    found = [name for name, kind in SHARD_FORMATS.items() if kind.find(root, split)]
    try:
        has_folder = (root / split).is_dir()
        # If there are shards, train/ may be the folder that holds them.
        if has_folder and (not found or _has_folders(root / split)):
            found.insert(0, FOLDER)
    except OSError as error:
        raise _unreadable(root, error) from error
    if not found:
        raise DataError(f"{root} has no {split}/ folder and no {split} shards: {_remedy(root)}")
    if len(found) > 1:
        raise DataError(
            f"{root} holds its {split} images as {' and as '.join(found)}: say which with --set "
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


def _layout(root: Path, split: str, layout: str) -> str:
    if layout == AUTO:
        return recognize(root, split)
    if layout not in FORMATS:
        raise ValueError(f"layout {layout!r} is none of {', '.join(FORMATS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is neither 'train' nor 'val'")
    _check_root(root)
    if layout == FOLDER:
        if not (root / split).is_dir():
            raise DataError(f"{root} has no {split}/ folder: {_remedy(root)}")
    elif not SHARD_FORMATS[layout].find(root, split):
        raise DataError(
            f"{root} has no {split} shards of format {layout}: give --set data.format=auto to "
            f"take what is there"
        )
    return layout


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


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(e.is_dir() and not e.name.startswith(".") for e in entries)


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
            shown = ", ".join(sorted(extra)[:_MAX_SHOWN])
            more = f" and {len(extra) - _MAX_SHOWN} more" if len(extra) > _MAX_SHOWN else ""
            parts.append(f"only in {split}/: {shown}{more}")
    if parts:
        raise DataError(
            f"train/ and val/ of {root} have different classes ({'; '.join(parts)}): both need "
            f"the same class folders"
        )
