"""Recognize how a data set is stored, and index it.

``folder``: ``train/<class>/<image>`` and ``val/<class>/<image>``, or only ``<class>/<image>``, of
which `image_classification.data.formats.split` holds some images out for validation. ``tfrecord``,
``recordio`` and ``webdataset``: shards in the data set's folder, or in its train/ and val/ folders
(see the modules of these names). The same data set gives the same images and labels in every
format.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from image_classification.core.class_folders import (
    HEIC_EXTENSIONS,
    IMAGE_EXTENSIONS,
    SPLITS,
    count_skipped,
    folder_names,
    has_only_class_folders,
    is_image_name,
    skipped_text,
)
from image_classification.core.errors import DataError
from image_classification.core.units import counted, some_of
from image_classification.data.formats import recordio, tfrecord, webdataset
from image_classification.data.formats.index import FolderIndex, Index, Int64s, Names
from image_classification.data.formats.shards import (
    ShardFormat,
    check_count,
    named_classes,
    open_shards,
)
from image_classification.data.formats.split import (
    DEFAULT_RULE,
    Split,
    SplitRule,
    split_images,
)
from image_classification.data.tools import quarantine

AUTO = "auto"
"""Value of ``data.format`` that asks to recognize the layout."""

FOLDER = "folder"
SHARD_FORMATS: dict[str, ShardFormat] = {
    f.name: f for f in (tfrecord.FORMAT, recordio.FORMAT, webdataset.FORMAT)
}
FORMATS = (FOLDER, *SHARD_FORMATS)


def open_index(
    root: Path,
    split: str,
    num_classes: int | None,
    layout: str = AUTO,
    rule: SplitRule = DEFAULT_RULE,
    classes: tuple[str, ...] | None = None,
) -> Index:
    """Index ``split`` of the data set at ``root`` for a model of ``num_classes``.

    layout: ``data.format``. num_classes: None accepts any number. rule: which images of a folder
    without train/ and val/ are held out. classes: the model's class names, to which labels are
    mapped (`Index.in_class_order`); None keeps the data set's. Images in ``quarantine.json`` are
    left out of train; val must be complete. Without train/ and val/ they are left out before the
    split.

    Raises:
        DataError: no data set there, not in its layout (see `index_folder` and
            `image_classification.data.formats.shards.open_shards`), or quarantined images in val.
        ClassesError: the data set's classes are not the model's ``classes``.
    """
    if classes is not None:
        return open_index(root, split, None, layout, rule).in_class_order(classes)
    layout = recognize(root, split, layout)
    broken = set(quarantine.load(root))
    index: Index
    if layout == FOLDER:
        index = index_folder(root, split, num_classes, rule, broken)
    else:
        index = open_shards(SHARD_FORMATS[layout], root, split, num_classes)
    if rule.split_file is not None and (layout != FOLDER or _has_split_folders(root)):
        raise DataError(
            f"{root} has its own {split} images, so data.split_file {rule.split_file} has no "
            f"effect: leave it out"
        )
    kept = index.without(broken)
    if split == "val" and kept.num_quarantined:
        raise DataError(
            f"{kept.num_quarantined} of the {len(index)} validation images of {root} are in "
            f"{quarantine.QUARANTINE_FILE}: validation skips none: replace them and check again"
        )
    if not len(kept):
        raise DataError(f"all {split} images of {root} are in {quarantine.QUARANTINE_FILE}")
    return kept


def index_folder(
    root: Path,
    split: str,
    num_classes: int | None,
    rule: SplitRule = DEFAULT_RULE,
    broken: Set[str] = frozenset(),
) -> FolderIndex:
    """Index ``root/split/<class>/<image>``, or the ``split`` images of ``root/<class>/<image>``.

    Classes are the sorted names of the folders. Names that start with a dot are skipped, and files
    without one of `IMAGE_EXTENSIONS`. No image is opened. rule, broken: how to split
    ``root/<class>/<image>``, and the images to leave out before.

    Raises:
        DataError: no data set there, the split is missing or flat, a class is empty, train and
            val have different classes, their number is not the model's, or a class has too few
            images to split.
    """
    classes = _check_folder(root, split, num_classes)
    if not _has_split_folders(root):
        return _index_class_folders(root, split, classes, rule, broken)
    images, notes = _list_images(root / split, classes, f"{split}/", "train/ and val/")
    names = [name for files in images.values() for name in files]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [*map(len, images.values())])
    return _folder_index(root, split, classes, names, labels, notes)


def _index_class_folders(
    root: Path, split: str, classes: tuple[str, ...], rule: SplitRule, broken: Set[str]
) -> FolderIndex:
    chosen, num_broken, notes = _split_class_folders(root, classes, rule, broken, split)
    names = getattr(chosen, split)
    if not names:
        raise DataError(
            f"{chosen.source} leaves no {split} images of {root}: set another data.val_fraction, "
            f"such as 0.2"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[name.split("/")[0]] for name in names], dtype=np.int64)
    index = _folder_index(root, split, classes, names, labels, notes)
    return replace(index, num_quarantined=num_broken if split == "train" else 0)


def is_class_folders(root: Path) -> bool:
    """Return whether the data set is ``root/<class>/<image>``, without train/ and val/.

    Raises:
        DataError: no data set there.
    """
    has_folders = has_split(root, "train") and not _has_split_folders(root)
    return has_folders and not any(f.find(root, "train") for f in SHARD_FORMATS.values())


def split_of_class_folders(root: Path, rule: SplitRule) -> Split | None:
    """Return the split of a data set without train/ and val/; None for any other data set.

    Raises:
        DataError: as for `open_index`.
    """
    if not is_class_folders(root):
        return None
    classes = _check_folder(root, "train", None)
    return _split_class_folders(root, classes, rule, set(quarantine.load(root)), None)[0]


def _split_class_folders(
    root: Path, classes: tuple[str, ...], rule: SplitRule, broken: Set[str], split: str | None
) -> tuple[Split, int, tuple[str, ...]]:
    """Return the split, the number of quarantined images, and notes for the user."""
    images, notes = _list_images(root, classes, "", str(root))
    for name, files in images.items():
        if all(file in broken for file in files):
            raise DataError(
                f"all images of class {name} of {root} are in {quarantine.QUARANTINE_FILE}: "
                f"replace them and check again"
            )
    num_broken = sum(file in broken for files in images.values() for file in files)
    chosen = split_images(root, images, rule, split, broken)
    note = (
        f"{root} has no train/ and val/: {len(chosen.train):,} train and {len(chosen.val):,} "
        f"validation images by {chosen.source}"
    )
    if unsorted := sum(map(is_image_name, _listed(root))):
        images_text = counted(unsorted, "image")
        notes = (*notes, f"skipped {images_text} in {root} itself, outside class folders")
    return chosen, num_broken, (note, *notes)


def _list_images(
    folder: Path, classes: tuple[str, ...], prefix: str, where: str
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Return class -> sorted image names, each with ``prefix``, and notes on skipped files."""
    images: dict[str, list[str]] = {}
    skipped: Counter[str] = Counter()
    for name in classes:
        entries = _listed(folder / name)
        files = sorted(entry for entry in entries if is_image_name(entry))
        if len(files) < len(entries):
            skipped.update(_skipped(folder / name))
        if not files:
            others = f" ({skipped_text(skipped, name)})" if skipped else ""
            raise DataError(
                f"class folder {folder / name} holds no image ({', '.join(IMAGE_EXTENSIONS)})"
                f"{others}: fill it, or remove it from {where}"
            )
        images[name] = [f"{prefix}{name}/{file}" for file in files]
    return images, (skipped_text(skipped, str(folder)),) if skipped else ()


def _folder_index(
    root: Path,
    split: str,
    classes: tuple[str, ...],
    names: Sequence[str],
    labels: Int64s,
    notes: tuple[str, ...],
) -> FolderIndex:
    encoded = Names.of([os.fsencode(name) for name in names])
    return FolderIndex(root, split, classes, labels, encoded, notes=notes)


def _has_split_folders(root: Path) -> bool:
    return any((root / split).is_dir() for split in SPLITS)


def check_classes(root: Path, split: str, num_classes: int | None, layout: str = AUTO) -> None:
    """Check the folders and class names of a data set, without listing or opening its images.

    num_classes: the model's; None accepts any number. Class folders of the other split are compared
    if they exist; evaluation needs only ``val/``.

    Raises:
        DataError: as for `open_index`.
    """
    if recognize(root, split, layout) == FOLDER:
        _check_folder(root, split, num_classes)
    else:
        named = named_classes(root)
        if named is not None and num_classes is not None:
            check_count(root, len(named), num_classes)


def _check_folder(root: Path, split: str, num_classes: int | None) -> tuple[str, ...]:
    """Return the classes of ``split``; compare them with the other split's and the model's."""
    if not _has_split_folders(root):
        classes = _class_names(root)
        if num_classes is not None:
            check_count(root, len(classes), num_classes, "class folders")
        return classes
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
                parts.append(f"only in {name}/: {some_of(sorted(extra))}")
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
    try:
        is_folder = folder.is_dir() or has_only_class_folders(root)
    except OSError as error:
        raise _unreadable(root, error) from error
    if layout == FOLDER and not is_folder:
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
        if is_folder and (not found or (folder.is_dir() and folder_names(folder))):
            found.insert(0, FOLDER)
    except OSError as error:
        raise _unreadable(root, error) from error
    if not found and (unsorted := sum(map(is_image_name, _listed(root)))):
        raise DataError(
            f"{root} holds {counted(unsorted, 'image')} and no class folders: sort the images into "
            f"one folder per class, and give the folder above these"
        )
    if not found:
        skipped = _skipped_in_class_folders(root)
        if any(kind in HEIC_EXTENSIONS for kind in skipped):
            raise DataError(
                f"the class folders of {root} hold no image that can be read: "
                f"{skipped_text(skipped, str(root))}"
            )
        raise DataError(f"{root} has no {split}/ folder and no {split} shards: {_remedy(root)}")
    if len(found) > 1:
        raise DataError(
            f"{root} holds its {split} images as {' and as '.join(found)}: choose one with --set "
            f"data.format={found[0]}"
        )
    return found[0]


def has_split(root: Path, split: str) -> bool:
    """Return whether ``root`` has images of ``split``, in any format.

    A folder of class folders alone has both splits.

    Raises:
        DataError: no data set there.
    """
    _check_root(root)
    if (root / split).is_dir() or any(f.find(root, split) for f in SHARD_FORMATS.values()):
        return True
    try:
        return has_only_class_folders(root)
    except OSError as error:
        raise _unreadable(root, error) from error


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
        "give a folder with train/<class>/ and val/<class>/, or with <class>/ alone "
        f"(in Docker, mount it: docker run -v /your/imagenet:{root.absolute()} …), or 'demo' "
        "(small real images, made on the spot), or 'synthetic'"
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = folder_names(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    if names:
        return tuple(names)
    num_images = sum(map(is_image_name, _listed(folder)))
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


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _skipped_in_class_folders(root: Path) -> Counter[str]:
    skipped: Counter[str] = Counter()
    with suppress(OSError):  # only for a better error message
        for name in folder_names(root):
            skipped.update(count_skipped(root / name))
    return skipped


def _skipped(folder: Path) -> dict[str, int]:
    try:
        return count_skipped(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {folder}: {error.strerror}: check its permissions and its mount")
