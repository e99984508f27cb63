"""Decode every image of a data set once and describe the data set.

An image is broken if the decoder of the ``pytorch`` backend refuses it. Images that decode but are
unusual (CMYK, a PNG named ``.JPEG``, an EXIF orientation) are listed as odd.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from image_classification.core.class_folders import SPLITS
from image_classification.core.errors import DataError
from image_classification.data.formats.folder import (
    FOLDER,
    SHARD_FORMATS,
    has_split,
    index_folder,
    is_class_folders,
    recognize,
)
from image_classification.data.formats.image_header import (
    MAX_PIXELS,
    exif_orientation,
    image_size,
)
from image_classification.data.formats.index import Bytes, FolderIndex, Index, VanishedError
from image_classification.data.formats.shards import open_shards
from image_classification.data.tools import quarantine
from image_classification.data.tools.parallel import Progress, no_progress, run_parallel
from image_classification.data.transforms import decode_rgb

BROKEN_KINDS = ("empty", "truncated", "oversized", "undecodable", "unreadable")
"""Why an image cannot be used; ``unreadable``: its bytes could not be read."""

ODD_KINDS = ("cmyk", "disguised", "exif_orientation")

_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
}
_EXPECTED_FORMAT = {
    **{".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp"},
    **{".bmp": "bmp", ".tif": "tiff", ".tiff": "tiff", ".heic": "heic", ".heif": "heic"},
}
# Pillow's other formats (such as PostScript) start programs or read much just for a header.
_PIL_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")

_IMAGENET_CLASSES = 1000
_IMAGENET_IMAGES = {"train": 1_281_167, "val": 50_000}
_IMAGENET_FIRST, _IMAGENET_LAST = "n01440764", "n15075141"


@dataclass(frozen=True)
class ImageFacts:
    """What `inspect_image` found in one image.

    content_format: by its first bytes, or ``unknown``. mode: Pillow's (``RGB``, ``L``, ``CMYK``,
    …), '' if the header cannot be read. width_px, height_px: as stored, 0 if unknown. odd: from
    `ODD_KINDS`; ``disguised``: the content is not the format of the name's extension;
    ``exif_orientation``: EXIF asks for a rotation or mirroring (``data.exif_orientation``).
    broken: '' or one of `BROKEN_KINDS`; reason: why, in one line.
    """

    num_bytes: int = 0
    content_format: str = "unknown"
    mode: str = ""
    width_px: int = 0
    height_px: int = 0
    odd: tuple[str, ...] = ()
    broken: str = ""
    reason: str = ""


def inspect_image(content: Bytes, name: str) -> ImageFacts:
    """Decode the image ``content``, ``[bytes]`` uint8, and return what was found.

    An image that the training decoder refuses is reported as broken; nothing is raised. An image
    of more than `MAX_PIXELS` pixels is not decoded.
    """
    data = content.tobytes()
    if not data:
        return ImageFacts(broken="empty", reason="the file is empty")
    content_format = next((f for start, f in _SIGNATURES.items() if data.startswith(start)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        content_format = "webp"
    elif data[4:8] == b"ftyp":
        content_format = "heic"
    expected = _EXPECTED_FORMAT.get(os.path.splitext(name)[1].lower(), content_format)
    width, height = image_size(data) or (0, 0)
    mode = _read_mode(data)
    is_odd = (mode == "CMYK", content_format not in ("", expected), exif_orientation(data) != 1)
    broken, reason = "", ""
    try:
        decode_rgb(content, name)
    except DataError as error:
        reason = error.message.removeprefix(f"cannot decode {name}: ")
        reason = reason.rsplit(": ", 1)[0]  # drop the remedy
        if width * height > MAX_PIXELS:
            broken = "oversized"
        else:
            broken = "truncated" if _is_truncated(data) else "undecodable"
    return ImageFacts(
        num_bytes=len(data),
        content_format=content_format or "unknown",
        mode=mode,
        width_px=width,
        height_px=height,
        odd=tuple(kind for kind, is_so in zip(ODD_KINDS, is_odd, strict=True) if is_so),
        broken=broken,
        reason=reason,
    )


def _read_mode(data: bytes) -> str:
    """Return Pillow's mode; '' if the header cannot be read."""
    try:
        return _open_with_pillow(data).mode
    except Exception:  # Pillow raises exceptions of every kind
        return ""


def _is_truncated(data: bytes) -> bool:
    try:
        _open_with_pillow(data).load()
    except Exception as error:
        return "truncated" in str(error).lower()
    return False


def _open_with_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_PIL_FORMATS)


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[np.int64]) -> Spread | None:
        """Return the spread of ``values``, or None if there are none."""
        if not len(values):
            return None
        return cls(float(values.min()), float(np.median(values)), float(values.max()))


@dataclass
class SplitReport:
    """One split. Widths, heights and pixels cover the images whose header can be read.

    formats, modes: number of images by content format and by Pillow's mode. odd, broken: names of
    images by kind (`ODD_KINDS`, `BROKEN_KINDS`). reasons: why, by name of broken image.
    """

    format: str
    classes: tuple[str, ...]
    num_images: int
    images_per_class: Spread | None
    total_bytes: int = 0
    bytes: Spread | None = None
    width_px: Spread | None = None
    height_px: Spread | None = None
    pixels: Spread | None = None
    formats: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in ODD_KINDS})
    broken: dict[str, list[str]] = field(default_factory=lambda: {k: [] for k in BROKEN_KINDS})
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class CheckReport:
    """A whole data set.

    problems: what would make a run fail, apart from broken images; notes: what would not.
    has_split_folders: False for class folders that are split without the listed broken images.
    imagenet_1k: ``complete``, ``incomplete`` (its classes, other numbers of images) or ``no``.
    """

    path: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    imagenet_1k: str = "no"
    has_split_folders: bool = True

    @property
    def broken(self) -> dict[str, str]:
        """Every broken image, name -> reason."""
        return {name: why for split in self.splits.values() for name, why in split.reasons.items()}

    def failures(self, listed: Collection[str] = ()) -> dict[str, str]:
        """Return the broken images that would make a run fail, name -> reason.

        listed: the quarantine list. Training leaves out its images, unless they are all that
        there are; validation leaves out none, except where the split is made without them.
        """
        if not self.has_split_folders:
            return {name: why for name, why in self.broken.items() if name not in listed}
        train = self.splits.get("train")
        skipped = set(listed) & train.reasons.keys() if train is not None else set()
        if train is not None and len(skipped) == train.num_images:
            skipped = set()
        return {name: why for name, why in self.broken.items() if name not in skipped}

    def is_usable(self, listed: Collection[str] = ()) -> bool:
        """Return whether nothing found would make a run fail. See `failures`."""
        return not self.problems and not self.failures(listed)


def check_data_set(
    root: Path, *, workers: int = 0, progress: Progress = no_progress
) -> CheckReport:
    """Check the data set at ``root``, of any format. An existing quarantine list is ignored.

    Raises:
        DataError: there is no data set, or it disappears during the check.
    """
    report = CheckReport(str(root))
    report.has_split_folders = not is_class_folders(root)
    for split, (layout, index) in _open_splits(root, report).items():
        report.notes += [note for note in index.notes if note not in report.notes]
        report.splits[split] = _check_split(index, split, layout, workers, progress)
    _recognize_imagenet(report)
    return report


def quarantine_list(root: Path, report: CheckReport) -> dict[str, str]:
    """Return the new quarantine list of ``root``: the images that are broken now.

    If a split could not be checked, the entries of the existing list are kept.

    Raises:
        DataError: that existing list is damaged.
    """
    existing = {} if len(report.splits) == len(SPLITS) else quarantine.load(root)
    return existing | report.broken


def _open_splits(root: Path, report: CheckReport) -> dict[str, tuple[str, Index]]:
    """Return (format, index) of each split that can be indexed; note the others in ``report``."""
    opened: dict[str, tuple[str, Index]] = {}
    present = [split for split in SPLITS if has_split(root, split)]
    for split in SPLITS:
        if split == "train" and present == ["val"]:
            report.notes.append("there are no train images: only evaluation is possible")
            continue
        try:
            layout = recognize(root, split)
            if layout == FOLDER:
                opened[split] = (layout, index_folder(root, split, None))
            else:
                opened[split] = (layout, open_shards(SHARD_FORMATS[layout], root, split, None))
        except DataError as error:
            if not present:
                raise
            if error.message not in report.problems:  # both splits may have the same problem
                report.problems.append(error.message)
    return opened


def _check_split(
    index: Index, split: str, layout: str, workers: int, progress: Progress
) -> SplitReport:
    total = len(index)
    counts = np.bincount(index.labels, minlength=len(index.classes))
    report = SplitReport(layout, index.classes, total, Spread.of(counts.astype(np.int64)))
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    sizes = np.empty((total, 3), dtype=np.int64)  # bytes, width, height
    for i, facts in enumerate(run_parallel(_inspect, index, range(total), workers)):
        sizes[i] = facts.num_bytes, facts.width_px, facts.height_px
        formats[facts.content_format] += 1
        if facts.mode:
            modes[facts.mode] += 1
        for kind in facts.odd:
            report.odd[kind].append(index.name(i))
        if facts.broken:
            report.broken[facts.broken].append(index.name(i))
            report.reasons[index.name(i)] = facts.reason
        progress(split, i + 1, total)
    num_bytes, width, height = sizes.T
    known = width > 0
    report.total_bytes = int(num_bytes.sum())
    report.bytes = Spread.of(num_bytes)
    report.width_px, report.height_px = Spread.of(width[known]), Spread.of(height[known])
    report.pixels = Spread.of((width * height)[known])
    report.formats = dict(formats.most_common())
    report.modes = dict(modes.most_common())
    return report


def _inspect(index: Index, i: int) -> ImageFacts:
    name = index.name(i)
    try:
        content = index.read(i)
    except VanishedError:
        raise
    except DataError as error:
        path = index.root / name
        if isinstance(index, FolderIndex) and path.is_file() and not path.stat().st_size:
            return ImageFacts(broken="empty", reason="the file is empty")
        return ImageFacts(broken="unreadable", reason=error.message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about large images and damaged EXIF
        return inspect_image(content, name)


def _recognize_imagenet(report: CheckReport) -> None:
    splits = report.splits
    has_count = {s: found.num_images == _IMAGENET_IMAGES[s] for s, found in splits.items()}
    for split, found in splits.items():
        classes = found.classes
        has_synsets = (min(classes), max(classes)) == (_IMAGENET_FIRST, _IMAGENET_LAST) and all(
            re.fullmatch(r"n\d{8}", name) for name in classes
        )
        # Packed sets may have numbers instead of class names.
        if len(classes) != _IMAGENET_CLASSES or not (has_synsets or has_count[split]):
            return
    if not splits:
        return
    is_complete = len(splits) == len(SPLITS) and all(has_count.values())
    report.imagenet_1k = "complete" if is_complete else "incomplete"
    report.notes += [
        f"these are ImageNet-1k's classes, but {split} has {splits[split].num_images:,} images "
        f"where ImageNet-1k has {_IMAGENET_IMAGES[split]:,}"
        for split, is_so in has_count.items()
        if not is_so
    ]
