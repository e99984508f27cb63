"""What one encoded image is, and whether training could use it.

Look at every image of a data set once, before a run does.

Broken is what training would refuse: each image goes through the decoder of the ``pytorch``
backend. What is merely odd (CMYK, a PNG named ``.JPEG``, an EXIF orientation) is listed.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import (
    FOLDER,
    IMAGE_EXTENSIONS,
    SHARD_FORMATS,
    SPLITS,
    index_folder,
    recognise,
)
from image_classification.data.formats.image_header import MAX_PIXELS, image_size
from image_classification.data.formats.index import Bytes, FolderIndex, Index, VanishedError
from image_classification.data.formats.shards import open_shards
from image_classification.data.loaders.decode import decode_rgb
from image_classification.data.tools import quarantine
from image_classification.data.tools.imagenet import NUM_CLASSES, NUM_IMAGES, has_imagenet_classes
from image_classification.data.tools.parallel import run_parallel

BROKEN_KINDS = ("empty", "truncated", "oversized", "undecodable", "unreadable")
"""Why an image is of no use; ``unreadable``: its bytes could not be had at all."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_OF_EXTENSION = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
_EXIF_ORIENTATION = 0x0112
# Others (such as PostScript) would start programs or read much for a header.
_PIL_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class ImageFacts:
    """One image, as `inspect_image` finds it.

    content_format: by its first bytes, ``unknown`` where none is recognised. mode: Pillow's
    (``RGB``, ``L``, ``CMYK`` …), '' where the header cannot be read. Sides in pixels as stored,
    0 where unknown. is_disguised: the name's extension says another format. is_oriented: EXIF
    asks for a rotation or a mirror, which training does not apply. broken: '' or one of
    `BROKEN_KINDS`, and reason: why, in one line.
    """

    num_bytes: int
    content_format: str
    mode: str
    width_px: int
    height_px: int
    is_disguised: bool
    is_oriented: bool
    broken: str
    reason: str


def inspect_image(content: Bytes, name: str) -> ImageFacts:
    """Look at and decode ``content``, ``[bytes]`` uint8; ``name`` may end in an extension.

    What the decoder of training refuses is broken; nothing is raised for it. An image of more
    pixels than the decoder's bound is not decoded.
    """
    data = content.tobytes()
    if not data:
        return no_content("empty", "the file is empty")
    kind = content_format(data)
    expected = _OF_EXTENSION.get(os.path.splitext(name)[1].lower(), "")
    width, height = image_size(data) or (0, 0)
    mode, orientation = _header(data)
    broken, reason = "", ""
    try:
        decode_rgb(content, name)
    except DataError as error:
        reason = error.message.removeprefix(f"cannot decode {name}: ")
        reason = reason.rsplit(": ", 1)[0]  # the remedy
        if width * height > MAX_PIXELS:
            broken = "oversized"
        else:
            broken = "truncated" if _is_cut_short(data) else "undecodable"
    return ImageFacts(
        num_bytes=len(data),
        content_format=kind,
        mode=mode,
        width_px=width,
        height_px=height,
        is_disguised=bool(expected) and kind not in ("unknown", expected),
        is_oriented=orientation not in (0, 1),
        broken=broken,
        reason=reason,
    )


def no_content(kind: str, reason: str) -> ImageFacts:
    """Return the facts of an image whose bytes are not there: ``empty`` or ``unreadable``."""
    assert kind in BROKEN_KINDS
    return ImageFacts(0, "unknown", "", 0, 0, False, False, kind, reason)


def content_format(data: bytes) -> str:
    """Name the format that ``data`` begins as; ``unknown`` where it is none of an image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _SIGNATURES if data.startswith(start)), "unknown")


def _header(data: bytes) -> tuple[str, int]:
    """Return (mode, EXIF orientation) as Pillow reads them; ('', 0) where it cannot."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images, damaged EXIF
        try:
            with Image.open(io.BytesIO(data), formats=_PIL_FORMATS) as image:
                return image.mode, _orientation(image)
        except Exception:  # Pillow's plugins raise of every kind on damaged headers
            return "", 0


def _orientation(image: object) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 0)  # type: ignore[attr-defined]
    except Exception:  # damaged EXIF does not make the pixels unusable
        return 0
    return value if isinstance(value, int) and 1 <= value <= 8 else 0


def _is_cut_short(data: bytes) -> bool:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_PIL_FORMATS) as image:
                image.load()
        except Exception as error:
            return "truncated" in str(error).lower()
    return False


ODD_KINDS = ("cmyk", "disguised", "exif_orientation")

_CHUNK = 64

SplitProgress = Callable[[str, int, int], None]
"""Called with the split, the images looked at, and all of its images."""


@dataclass(frozen=True)
class Spread:
    """Least, middle and largest of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[np.int64]) -> Spread | None:
        """Return the spread of ``values``; None of no values."""
        if not len(values):
            return None
        return cls(float(values.min()), float(np.median(values)), float(values.max()))


@dataclass
class SplitReport:
    """One split. Widths, heights and pixels are those of images whose header can be read.

    formats, modes: how many images there are of each (by content; Pillow's modes). odd, broken:
    names of images by kind (`ODD_KINDS`, `BROKEN_KINDS`); reasons: of each broken one.
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
    """A data set. problems: what would break a run, broken images apart; notes: what would not.

    imagenet_1k: ``complete``, ``incomplete`` (its classes, other numbers of images) or ``no``.
    """

    path: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    imagenet_1k: str = "no"

    @property
    def broken(self) -> dict[str, str]:
        """Every broken image, name -> reason: the quarantine list."""
        return {name: why for split in self.splits.values() for name, why in split.reasons.items()}

    @property
    def is_usable(self) -> bool:
        """Whether nothing here would break a run."""
        return not self.problems and not self.broken


def check_data_set(
    root: Path,
    *,
    workers: int = 0,
    progress: SplitProgress = lambda split, done, total: None,
) -> CheckReport:
    """Check the data set at ``root``, whatever its format; an old quarantine list is not heeded.

    Raises:
        DataError: there is no data set at all, or it goes away meanwhile.
    """
    report = CheckReport(str(root))
    opened = _open_splits(root, report)
    for split, (layout, index) in opened.items():
        if layout == FOLDER:
            _note_other_files(root / split, index.classes, report)
        report.splits[split] = _survey(index, split, layout, workers, progress)
    _recognise_imagenet(report)
    return report


def quarantine_list(root: Path, report: CheckReport) -> dict[str, str]:
    """Return the list to keep for ``root``: what is broken now.

    Where a split could not be looked at, what an older list says stays.

    Raises:
        DataError: such an older list is damaged.
    """
    older = {} if len(report.splits) == len(SPLITS) else quarantine.load(root)
    return older | report.broken


def _open_splits(root: Path, report: CheckReport) -> dict[str, tuple[str, Index]]:
    """Return (format, index) of every split that can be indexed; the rest goes into ``report``."""
    opened: dict[str, tuple[str, Index]] = {}
    missing: dict[str, DataError] = {}
    flat = {split: count for split in SPLITS if (count := _num_flat(root / split))}
    for split in SPLITS:
        try:
            layout = recognise(root, split)
        except DataError as error:
            if not root.is_dir():
                raise
            missing[split] = error
            continue
        if split in flat:
            report.problems.append(
                f"{split}/ is flat: {flat[split]:,} images directly in it, no class folders: sort "
                f"them with `python -m image_classification dataset prepare {root}`"
            )
        elif flat and layout == FOLDER:
            report.notes.append(f"{split}/ was not looked at: its classes have no counterpart yet")
        else:
            try:
                opened[split] = (layout, _open(root, split, layout))
            except DataError as error:
                if error.message not in report.problems:  # both splits may say the same
                    report.problems.append(error.message)
    if len(missing) == len(SPLITS):
        raise missing["train"]
    if "train" in missing:
        report.notes.append("there are no train images: good for evaluating alone")
    elif "val" in missing:
        report.problems.append(missing["val"].message)
    return opened


def _open(root: Path, split: str, layout: str) -> Index:
    if layout == FOLDER:
        return index_folder(root, split, None)
    return open_shards(SHARD_FORMATS[layout], root, split, None)


def _num_flat(folder: Path) -> int:
    """Return how many images lie in ``folder`` itself, 0 where there are class folders."""
    try:
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        return 0
    if any(is_dir and not name.startswith(".") for name, is_dir in listed):
        return 0
    return sum(name.lower().endswith(IMAGE_EXTENSIONS) for name, _ in listed)


def _note_other_files(folder: Path, classes: tuple[str, ...], report: CheckReport) -> None:
    """Note files that are no images by their name: an index passes over them in silence."""
    others: list[str] = []
    for name in classes:
        try:
            files = os.listdir(folder / name)
        except OSError:  # read a moment ago; the survey will tell
            continue
        others += [f"{name}/{f}" for f in files if not f.lower().endswith(IMAGE_EXTENSIONS)]
    if others:
        report.notes.append(
            f"{len(others):,} files in {folder.name}/ are passed over, for their names do not end "
            f"in {', '.join(IMAGE_EXTENSIONS)}, such as {min(others)}"
        )


@dataclass
class _Found:
    """What one process found in some images. sizes: ``[N, 3]`` bytes, width, height."""

    sizes: npt.NDArray[np.int64]
    formats: Counter[str]
    modes: Counter[str]
    named: list[tuple[str, str, str]]
    """Kind, name, and reason where broken."""


def _survey(
    index: Index, split: str, layout: str, workers: int, progress: SplitProgress
) -> SplitReport:
    total = len(index)
    counts = np.bincount(index.labels, minlength=len(index.classes))
    report = SplitReport(layout, index.classes, total, Spread.of(counts.astype(np.int64)))
    chunks = [(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    sizes: list[npt.NDArray[np.int64]] = []
    results = run_parallel(_look, index, chunks, workers)
    for (_, end), found in zip(chunks, results, strict=True):
        sizes.append(found.sizes)
        formats += found.formats
        modes += found.modes
        for kind, name, reason in found.named:
            (report.broken if reason else report.odd)[kind].append(name)
            if reason:
                report.reasons[name] = reason
        progress(split, end, total)
    num_bytes, width, height = np.concatenate(sizes).T
    known = width > 0
    report.total_bytes = int(num_bytes.sum())
    report.bytes = Spread.of(num_bytes)
    report.width_px, report.height_px = Spread.of(width[known]), Spread.of(height[known])
    report.pixels = Spread.of((width * height)[known])
    report.formats = dict(formats.most_common())
    report.modes = dict(modes.most_common())
    return report


def _look(index: Index, chunk: tuple[int, int]) -> _Found:
    rows: list[tuple[int, int, int]] = []
    found = _Found(np.empty((0, 3), dtype=np.int64), Counter(), Counter(), [])
    for i in range(*chunk):
        name = index.name(i)
        facts = _facts(index, i, name)
        rows.append((facts.num_bytes, facts.width_px, facts.height_px))
        found.formats[facts.content_format] += 1
        if facts.mode:
            found.modes[facts.mode] += 1
        odd = (facts.mode == "CMYK", facts.is_disguised, facts.is_oriented)
        found.named += [(k, name, "") for k, is_so in zip(ODD_KINDS, odd, strict=True) if is_so]
        if facts.broken:
            found.named.append((facts.broken, name, facts.reason))
    found.sizes = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return found


def _facts(index: Index, i: int, name: str) -> ImageFacts:
    try:
        content = index.read(i)
    except VanishedError:
        raise
    except DataError as error:
        if isinstance(index, FolderIndex) and _is_empty(index.root / name):
            return no_content("empty", "the file is empty")
        return no_content("unreadable", error.message)
    return inspect_image(content, name)


def _is_empty(path: Path) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _recognise_imagenet(report: CheckReport) -> None:
    splits = report.splits
    counts_fit = {split: found.num_images == NUM_IMAGES[split] for split, found in splits.items()}
    classes_fit = bool(splits) and all(
        has_imagenet_classes(found.classes)
        # Packed sets may have numbers for names.
        or (len(found.classes) == NUM_CLASSES and counts_fit[split])
        for split, found in splits.items()
    )
    if not classes_fit:
        return
    is_complete = len(splits) == len(SPLITS) and all(counts_fit.values())
    report.imagenet_1k = "complete" if is_complete else "incomplete"
    for split, fits in counts_fit.items():
        if not fits:
            report.notes.append(
                f"these are ImageNet-1k's classes, but {split} has {splits[split].num_images:,} "
                f"images where ImageNet-1k has {NUM_IMAGES[split]:,}"
            )
