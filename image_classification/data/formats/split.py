"""Which images of a folder of class folders are for training and which for validation.

The choice depends only on the images' names: each class is put in the order of a hash of its names,
and its first images are for validation. So it is the same on every machine and for every seed of a
run, and adding photographs moves few others. It is kept in a file, ``split.json``:
``{"format": 1, "data_set": …, "val_fraction": 0.2, "seed": 0, "train": [names], "val": [names]}``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classification.config.schema import DataConfig
from image_classification.core.class_folders import SPLITS
from image_classification.core.errors import DataError
from image_classification.core.files import replacement_file

SPLIT_FILE = "split.json"
VAL_FRACTION = 0.2
"""Of each class, where ``data.val_fraction`` is null."""

_FORMAT = 1


@dataclass(frozen=True)
class SplitRule:
    """How to split: see ``data.val_fraction`` and ``data.split_file``.

    seed: of the hash. ignore_file: take no notice of ``split.json`` in the data set's folder.
    """

    val_fraction: float = VAL_FRACTION
    split_file: str | None = None
    seed: int = 0
    ignore_file: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> SplitRule:
        """Return the rule of a run."""
        fraction = VAL_FRACTION if data.val_fraction is None else data.val_fraction
        return cls(fraction, data.split_file)


DEFAULT_RULE = SplitRule()


@dataclass(frozen=True)
class Split:
    """The names of the images of each split, in the data set's order. source: what decided."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    source: str
    rule: SplitRule


def split_images(
    root: Path,
    images: Mapping[str, Sequence[str]],
    rule: SplitRule,
    split: str | None = None,
    broken: Set[str] = frozenset(),
) -> Split:
    """Split the ``images`` (class -> names below ``root``), without the ``broken`` ones.

    split: the one that is needed, if only one is: images that a split file does not list cannot be
    trained on, but do not matter for validation.

    Raises:
        DataError: too few images in a class, or a split file that does not fit the images.
    """
    images = {name: [f for f in files if f not in broken] for name, files in images.items()}
    path = Path(rule.split_file) if rule.split_file else root / SPLIT_FILE
    if rule.split_file or (not rule.ignore_file and os.path.lexists(path)):
        return _as_listed(path, images, rule, split, broken)
    chosen: set[str] = set()
    for name, files in images.items():
        chosen.update(_held_out(root, name, files, rule))
    train, val = (
        tuple(file for files in images.values() for file in files if (file in chosen) is is_val)
        for is_val in (False, True)
    )
    return Split(train, val, f"data.val_fraction {rule.val_fraction:g}", rule)


def _held_out(root: Path, name: str, files: Sequence[str], rule: SplitRule) -> list[str]:
    if rule.val_fraction in (0.0, 1.0):
        return list(files) if rule.val_fraction else []
    if len(files) < 2:
        raise DataError(
            f"class {name} of {root} has 1 image: a split needs at least 2, one to train on and "
            f"one to validate on: add photographs, or remove the folder {name}/"
        )
    count = min(max(1, round(rule.val_fraction * len(files))), len(files) - 1)
    return sorted(files, key=lambda file: _rank(file, rule.seed))[:count]


def _rank(file: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/".encode() + os.fsencode(file)).digest()


def _as_listed(
    path: Path,
    images: Mapping[str, Sequence[str]],
    rule: SplitRule,
    split: str | None,
    broken: Set[str],
) -> Split:
    listed = read_split(path)
    there = [file for files in images.values() for file in files]
    again = "restore them, or write the file again with `dataset split`"
    for name in SPLITS if split is None else (split,):
        gone = set(listed[name]) - set(there) - broken
        if gone:
            raise DataError(
                f"{len(gone)} {name} images listed in {path} are gone, such as {min(gone)}: {again}"
            )
    sets = {name: set(listed[name]) for name in SPLITS}
    unknown = [file for file in there if file not in sets["train"] and file not in sets["val"]]
    if unknown and split != "val":
        raise DataError(
            f"{len(unknown)} images are not listed in {path}, such as {unknown[0]}: write it again "
            f"with `dataset split`, or remove it"
        )
    train, val = (tuple(file for file in there if file in sets[name]) for name in SPLITS)
    return Split(train, val, str(path), rule)


def read_split(path: Path) -> dict[str, Any]:
    """Return the content of a split file; only ``train`` and ``val`` are sure to be there.

    Raises:
        DataError: it cannot be read, or is not a split file.
    """
    remedy = "write it again with `dataset split`, or remove it"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = {split: content[split] for split in SPLITS}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}: {remedy}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a split file of format {_FORMAT}: {remedy}") from error
    lists = names.values()
    is_valid = content.get("format") == _FORMAT and all(
        isinstance(files, list) and all(isinstance(file, str) for file in files) for files in lists
    )
    if not is_valid or set(names["train"]) & set(names["val"]):
        raise DataError(f"{path} is not a split file of format {_FORMAT}: {remedy}")
    return content


def write_split(path: Path, root: Path, split: Split) -> None:
    """Write a split file for the data set ``root`` atomically. Raises OSError."""
    content = {
        "format": _FORMAT,
        "data_set": str(root.absolute()),
        "val_fraction": split.rule.val_fraction,
        "seed": split.rule.seed,
        "train": split.train,
        "val": split.val,
    }
    with replacement_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
