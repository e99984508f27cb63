"""Checks of the data set: format and classes, and whether a sample of images decodes."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from image_classification.core.errors import DataError
from image_classification.core.program import command
from image_classification.doctor.report import CheckResult, fail, ok

if TYPE_CHECKING:
    from image_classification.data.formats.index import FolderIndex, Index

NUM_SAMPLES = 50


@dataclass(frozen=True)
class Layout:
    """formats: split -> format. num_classes: None if only reading the images would tell."""

    root: str
    formats: dict[str, str]
    num_classes: int | None
    is_writable: bool


@dataclass(frozen=True)
class Sample:
    """Times of reading and decoding images one after another.

    broken: error messages of the images that cannot be read or decoded.
    """

    split: str
    num_images: int
    num_bytes: int
    read_s: float
    decode_s: float
    broken: list[str]


def find_layout(path: str, data_format: str, num_classes: int | None) -> Layout:
    """Probe: return what is at ``path``. num_classes: the model's; None to accept any.

    Raises:
        DataError: there is no data set, or not one that a run can use.
    """
    from image_classification.data.formats import folder
    from image_classification.data.formats.shards import named_classes
    from image_classification.data.tools.demo import resolve_data_path

    root = resolve_data_path(path)
    formats = {}
    for split in folder.SPLITS:
        if split == "train" or folder.has_split(root, split):
            is_auto = data_format == folder.AUTO
            formats[split] = folder.recognize(root, split) if is_auto else data_format
            if num_classes is not None:
                folder.check_classes(root, split, num_classes, data_format)
    if formats["train"] == folder.FOLDER:
        count: int | None = sum(1 for _ in _entries(root / "train", folders=True))
    else:
        named = named_classes(root)
        count = None if named is None else len(named)
    return Layout(str(root), formats, count, os.access(root, os.W_OK))


def read_sample(root: str, split: str, data_format: str, count: int = NUM_SAMPLES) -> Sample:
    """Probe: read and decode ``count`` images spread over ``split``, from the disk if possible.

    In class folders, only those of the sample are listed; shards are indexed as in a run.

    Raises:
        DataError: the split cannot be indexed, or it has no images.
    """
    from image_classification.data.formats.folder import FOLDER, open_index
    from image_classification.data.transforms import decode_rgb

    index: Index
    if data_format == FOLDER:
        index = _folder_sample(Path(root), split, count)
    else:
        index = open_index(Path(root), split, None, data_format)
    decode_rgb(_small_jpeg(), "warm-up")  # loads the decoder, which is not timed
    num_bytes, read_s, decode_s = 0, 0.0, 0.0
    broken = []
    rows = _spread(len(index), count)
    for row in rows:
        _drop_cache(index, row)
        start_s = time.perf_counter()
        try:
            content = index.read(row)
            loaded_s = time.perf_counter()
            read_s += loaded_s - start_s
            num_bytes += len(content)
            decode_rgb(content, index.where(row))
            decode_s += time.perf_counter() - loaded_s
        except DataError as error:
            broken.append(error.message)
    return Sample(split, len(rows), num_bytes, read_s, decode_s, broken)


def _spread(total: int, count: int) -> list[int]:
    """Return ``count`` evenly spaced positions of ``total``, or all of them."""
    positions = np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))
    return [int(position) for position in positions]


def _entries(folder: Path, folders: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir() == folders:
                yield entry.name


def _folder_sample(root: Path, split: str, count: int) -> FolderIndex:
    from image_classification.data.formats.folder import IMAGE_EXTENSIONS
    from image_classification.data.formats.index import FolderIndex, Names

    classes = sorted(_entries(root / split, folders=True))
    labels_read = _spread(len(classes), count)
    per_class = -(-count // len(labels_read))
    paths, labels = [], []
    for label in labels_read:
        folder = root / split / classes[label]
        names = _entries(folder, folders=False)
        files = sorted(name for name in names if name.lower().endswith(IMAGE_EXTENSIONS))
        for number in _spread(len(files), per_class) if files else ():
            paths.append(os.fsencode(f"{split}/{classes[label]}/{files[number]}"))
            labels.append(label)
    if not paths:
        raise DataError(
            f"the class folders in {root / split} have no images ({', '.join(IMAGE_EXTENSIONS)}): "
            "put the images there"
        )
    return FolderIndex(root, split, tuple(classes), np.array(labels), Names.of(paths))


def _drop_cache(index: Index, row: int) -> None:
    """Ask the system to drop image ``row`` from its file cache; it may decline."""
    from image_classification.data.formats.index import ShardIndex

    path, offset, length = index.where(row), 0, 0  # the whole file
    if isinstance(index, ShardIndex):
        path = os.path.join(index.root, index.shards[int(index.shard[row])])
        offset, length = int(index.offset[row]), int(index.length[row])
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # reading it raises the same error
    try:
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _small_jpeg() -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return np.frombuffer(bytearray(file.getvalue()), dtype=np.uint8)


def check_layout(layout: Layout) -> CheckResult:
    """Describe the data set; `find_layout` raises an error for one that a run cannot use."""
    formats = list(dict.fromkeys(layout.formats.values()))
    if len(formats) == 1:
        parts = f"{formats[0]}, {' and '.join(layout.formats)}"
    else:
        parts = ", ".join(f"{split} as {kind}" for split, kind in layout.formats.items())
    classes = "" if layout.num_classes is None else f", {layout.num_classes:,} classes"
    access = "" if layout.is_writable else ", read-only"
    return ok("data-set", f"{layout.root}: {parts}{classes}{access}")


def check_sample(sample: Sample, root: str) -> CheckResult:
    """Judge the sample: every image must decode."""
    name = "data-sample"
    good = sample.num_images - len(sample.broken)
    found = f"{good} of {sample.num_images} {sample.split} images decoded"
    if sample.broken:
        remedy = (
            f"{command('dataset')} check {root} lists every broken image and makes training leave "
            "them out"
        )
        return fail(name, f"{found}: {sample.broken[0].rpartition(': ')[0]}", remedy)
    return ok(
        name,
        f"{found}, {sample.num_bytes / 1e6:.1f} MB; reading {good / sample.read_s:,.0f} images/s, "
        f"{sample.num_bytes / sample.read_s / 1e6:,.0f} MB/s; decoding "
        f"{good / sample.decode_s:,.0f} images/s in one thread",
    )
