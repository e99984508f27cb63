"""Facts about ImageNet-1k (ILSVRC 2012) as it is distributed, and the files its kit ships.

The labels of the validation images come with the development kit, or as a list: lines
``ILSVRC2012_val_00000001.JPEG n01751748``, or Kaggle's ``LOC_val_solution.csv``.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from image_classification.core.errors import DataError

NUM_CLASSES = 1000
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
KIT = "ILSVRC2012_devkit_t12"

_SYNSET = re.compile(r"n\d{8}")
_FIRST, _LAST = "n01440764", "n15075141"
_VAL_NUMBER = re.compile(r"_(\d{8})\.jpe?g$", re.IGNORECASE)
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_KIT_FILE_MAX_BYTES = 64 << 20
_SHOWN_CHARS = 60


def has_imagenet_classes(classes: Sequence[str]) -> bool:
    """Whether these are the 1000 classes: synset names, of the right number, first and last."""
    return (
        len(classes) == NUM_CLASSES
        and min(classes) == _FIRST
        and max(classes) == _LAST
        and all(_SYNSET.fullmatch(name) for name in classes)
    )


def is_class_name(name: str) -> bool:
    """Whether ``name`` may be the name of a class's folder, wherever it comes from."""
    return bool(re.fullmatch(r"[^./\\\x00\s][^/\\\x00\s]*", name))


class ValLabels:
    """The class of each validation image, by file name or by the number in it."""

    def __init__(self, source: str, by_name: dict[str, str], by_number: Sequence[str] = ()) -> None:
        self.source = source
        self._by_name = by_name
        self._by_number = by_number

    def __len__(self) -> int:
        return len(self._by_name) or len(self._by_number)

    def class_of(self, name: str) -> str:
        """Return the class of the image called ``name``.

        Raises:
            DataError: it is not in the list.
        """
        stem = name.rsplit(".", 1)[0]
        found = self._by_name.get(stem)
        number = _VAL_NUMBER.search(name)
        if found is None and number and 1 <= int(number[1]) <= len(self._by_number):
            found = self._by_number[int(number[1]) - 1]
        if found is None:
            raise DataError(
                f"{self.source} has no class for {name}: give the list that belongs to these "
                f"images with --labels"
            )
        return found


def find_labels(folder: Path, labels: Path | None) -> ValLabels:
    """Return the labels in ``labels``, else those of the kit in ``folder``.

    Raises:
        DataError: there are none, or they cannot be understood.
    """
    try:
        if labels is not None:
            return read_label_list(labels)
        packed, unpacked = folder / f"{KIT}.tar.gz", folder / KIT
        if unpacked.is_dir():
            return _from_kit(
                unpacked, (unpacked / _GROUND_TRUTH).read_bytes(), (unpacked / _META).read_bytes()
            )
        if packed.is_file():
            members = _kit_members(packed)
            return _from_kit(packed, members[_GROUND_TRUTH], members[_META])
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or labels or folder}: {error.strerror}: check the file"
        ) from error
    raise DataError(
        f"nothing in {folder} says which class a validation image has: put {KIT}.tar.gz there, "
        f"or give a list with --labels (LOC_val_solution.csv, or lines 'NAME.JPEG CLASS')"
    )


def read_label_list(path: Path) -> ValLabels:
    """Read lines ``NAME CLASS``, or the rows ``NAME,CLASS box …`` of LOC_val_solution.csv.

    Raises:
        DataError: a line that is neither. OSError: the file cannot be read.
    """
    labels: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: give a list of labels with --labels") from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or words[:2] == ["ImageId", "PredictionString"]:
            continue
        is_csv = "," in line
        if len(words) < 2 or (len(words) > 2 and not is_csv) or not is_class_name(words[1]):
            raise DataError(
                f"{path}:{number}: {line[:_SHOWN_CHARS]!r} is not 'NAME.JPEG CLASS': mend the line"
            )
        stem = words[0] if is_csv else words[0].rsplit(".", 1)[0]
        if labels.setdefault(stem, words[1]) != words[1]:
            raise DataError(f"{path}:{number}: {words[0]} has two classes: keep one of the lines")
    if not labels:
        raise DataError(f"{path} lists no image: give lines 'NAME.JPEG CLASS'")
    return ValLabels(str(path), labels)


def _kit_members(path: Path) -> dict[str, bytes]:
    """Read the two files out of the packed kit; nothing is written."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = "/".join(member.name.split("/")[-2:])
                if name in (_GROUND_TRUTH, _META) and member.isreg():
                    if member.size > _KIT_FILE_MAX_BYTES:
                        raise DataError(f"{member.name} in {path} is too large for what it is")
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): get it again") from error
    for name in (_GROUND_TRUTH, _META):
        if name not in found:
            raise DataError(f"{path} holds no {name}: get ImageNet's task 1 and 2 kit")
    return found


def _from_kit(source: Path, ground_truth: bytes, meta: bytes) -> ValLabels:
    """Return the labels by image number: the kit's ids, named through its ``meta.mat``."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        names = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
        by_number = [names[int(line)] for line in ground_truth.decode("ascii").split()]
    # scipy raises of many kinds on what is no MATLAB file.
    except Exception as error:
        raise DataError(f"the kit {source} cannot be understood: get it again") from error
    bad = [name for name in by_number if not is_class_name(name)]
    if bad or not by_number:
        raise DataError(f"the kit {source} names no usable classes: get it again")
    return ValLabels(str(source), {}, by_number)
