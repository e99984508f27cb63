"""Facts about ImageNet-1k (ILSVRC 2012), and the labels of its validation images.

The labels come with the development kit, or as a list: lines
``ILSVRC2012_val_00000001.JPEG n01751748``, or Kaggle's ``LOC_val_solution.csv``.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from image_classification.core.errors import DataError

NUM_CLASSES = 1000
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
KIT = "ILSVRC2012_devkit_t12"

_SYNSET = re.compile(r"n\d{8}")
_FIRST_CLASS, _LAST_CLASS = "n01440764", "n15075141"
_VAL_NUMBER = re.compile(r"_(\d{8})\.jpe?g$", re.IGNORECASE)
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_KIT_FILE_MAX_BYTES = 64 << 20
_SHOWN_CHARS = 60


def has_imagenet_classes(classes: Sequence[str]) -> bool:
    """Return whether these are ImageNet's 1000 synset names, by number, first and last."""
    return (
        len(classes) == NUM_CLASSES
        and min(classes) == _FIRST_CLASS
        and max(classes) == _LAST_CLASS
        and all(_SYNSET.fullmatch(name) for name in classes)
    )


def is_class_name(name: str) -> bool:
    """Return whether ``name``, from an untrusted file, is safe as the name of a class folder."""
    return bool(re.fullmatch(r"[^./\\\x00\s][^/\\\x00\s]*", name))


@dataclass(frozen=True)
class ValLabels:
    """The class of each validation image, by its name without extension or by its number."""

    source: str
    by_stem: dict[str, str] = field(default_factory=dict)
    by_number: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.by_stem) or len(self.by_number)

    def class_of(self, name: str) -> str:
        """Return the class of the image called ``name``.

        Raises:
            DataError: it is not in the list.
        """
        found = self.by_stem.get(name.rsplit(".", 1)[0])
        number = _VAL_NUMBER.search(name)
        if found is None and number and 1 <= int(number[1]) <= len(self.by_number):
            found = self.by_number[int(number[1]) - 1]
        if found is None:
            raise DataError(
                f"{self.source} has no class for {name}: give the list that belongs to these "
                f"images with --labels"
            )
        return found


def find_labels(folder: Path, labels: Path | None) -> ValLabels:
    """Return the labels in the file ``labels``, or those of the kit in ``folder``.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    packed, unpacked = folder / f"{KIT}.tar.gz", folder / KIT
    try:
        if labels is not None:
            return _read_label_list(labels)
        if unpacked.is_dir():
            files = {name: (unpacked / name).read_bytes() for name in (_GROUND_TRUTH, _META)}
            return _from_kit(unpacked, files)
        if packed.is_file():
            return _from_kit(packed, _read_packed_kit(packed))
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or labels or folder}: {error.strerror}: check the file"
        ) from error
    raise DataError(
        f"no classes of the validation images in {folder}: put {KIT}.tar.gz there, or give a list "
        f"with --labels (LOC_val_solution.csv, or lines 'NAME.JPEG CLASS')"
    )


def _read_label_list(path: Path) -> ValLabels:
    """Read lines ``NAME CLASS``, or the rows ``NAME,CLASS box …`` of LOC_val_solution.csv.

    Raises:
        DataError: a line that is neither. OSError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: give a list of labels with --labels") from error
    labels: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or words[:2] == ["ImageId", "PredictionString"]:
            continue
        is_csv = "," in line
        if len(words) < 2 or (len(words) > 2 and not is_csv) or not is_class_name(words[1]):
            raise DataError(
                f"{path}:{number}: {line[:_SHOWN_CHARS]!r} is not 'NAME.JPEG CLASS': fix the line"
            )
        stem = words[0] if is_csv else words[0].rsplit(".", 1)[0]
        if labels.setdefault(stem, words[1]) != words[1]:
            raise DataError(f"{path}:{number}: {words[0]} has two classes: keep one of the lines")
    if not labels:
        raise DataError(f"{path} lists no image: give lines 'NAME.JPEG CLASS'")
    return ValLabels(str(path), by_stem=labels)


def _read_packed_kit(path: Path) -> dict[str, bytes]:
    """Read the two files of the packed kit into memory; nothing is written."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = "/".join(member.name.split("/")[-2:])
                if name in (_GROUND_TRUTH, _META) and member.isreg():
                    if member.size > _KIT_FILE_MAX_BYTES:
                        raise DataError(f"{path} holds a {member.name} that is too large for a kit")
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from error
    for name in (_GROUND_TRUTH, _META):
        if name not in found:
            raise DataError(f"{path} holds no {name}: get ImageNet's task 1 and 2 kit")
    return found


def _from_kit(source: Path, files: dict[str, bytes]) -> ValLabels:
    """Return the labels by image number; the kit's class ids are named in its ``meta.mat``."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        synsets = loadmat(io.BytesIO(files[_META]), squeeze_me=True)["synsets"]
        names = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
        ids = files[_GROUND_TRUTH].decode("ascii").split()
        by_number = [names[int(number)] for number in ids]
    except Exception as error:  # scipy raises many kinds for a damaged MATLAB file
        raise DataError(f"cannot understand the kit {source}: download it again") from error
    if not by_number or not all(map(is_class_name, by_number)):
        raise DataError(f"the kit {source} names no usable classes: download it again")
    return ValLabels(str(source), by_number=by_number)
