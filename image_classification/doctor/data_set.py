"""Checks of the data set: format and classes, and whether a sample of images decodes."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from image_classification.core.class_folders import IMAGE_EXTENSIONS, SPLITS, own_classes
from image_classification.core.errors import DataError
from image_classification.core.program import command
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult, fail, ok, skipped, warn

if TYPE_CHECKING:
    from image_classification.data.formats.index import FolderIndex, Index
    from image_classification.doctor.checks import Context

_NUM_SAMPLES = 50


def check_data_set(context: Context) -> Iterator[CheckResult]:
    """Yield data-set, data-sample."""
    needs = context.needs
    path = context.data or needs.data_path
    if path is None or path == "synthetic":
        why = "neither --data nor --platform given" if path is None else "synthetic data"
        yield skipped("data-set", why)
        return
    try:
        root, formats, text = context.probe(
            find_data_set, path, needs.data_format, needs.num_classes
        )
    except ProbeError as error:
        yield _failure("data-set", path, error, context.limit_s)
        return
    yield ok("data-set", text)
    # Shards must be indexed whole, so the sample is of the smaller validation split.
    is_folder = formats["train"] == "folder"
    split = "train" if is_folder or "val" not in formats else "val"
    try:
        yield context.probe(read_sample, root, split, formats[split])
    except ProbeError as error:
        if error.is_late and not is_folder:
            remedy = "a run indexes the shards at its start and takes as long; later runs do not"
            yield warn("data-sample", f"not indexed within {context.limit_s:g} s", remedy)
        else:
            yield _failure("data-sample", root, error, context.limit_s)


def _failure(name: str, path: str, error: ProbeError, limit_s: float) -> CheckResult:
    if error.is_late:
        found = f"{path} did not answer within {limit_s:g} s"
        return fail(name, found, "check the disk or its mount (df, ls)")
    found, _, remedy = str(error).partition(": ")
    if not error.is_user_error or not remedy:
        return fail(name, f"{path}: {error}", "check the disk, its mount and its permissions")
    return fail(name, found, remedy)


def find_data_set(
    path: str, data_format: str, num_classes: int | None
) -> tuple[str, dict[str, str], str]:
    """Probe: return the folder of a data set, split -> format, and a description.

    num_classes: the model's; None to accept any. One's own data have their own number.

    Raises:
        DataError: there is no data set, or not one that a run can use.
    """
    from image_classification.data.formats import folder
    from image_classification.data.formats.shards import named_classes
    from image_classification.data.tools.demo import resolve_data_path

    root = resolve_data_path(path)
    formats = {}
    for split in SPLITS:
        if split == "train" or folder.has_split(root, split):
            is_auto = data_format == folder.AUTO
            formats[split] = folder.recognize(root, split) if is_auto else data_format
            if num_classes is not None and own_classes(str(root)) is None:
                folder.check_classes(root, split, num_classes, data_format)
    if len(set(formats.values())) == 1:
        text = f"{root}: {formats['train']}, {' and '.join(formats)}"
    else:
        parts = ", ".join(f"{split} as {kind}" for split, kind in formats.items())
        text = f"{root}: {parts}"
    if folder.is_class_folders(root):
        text += f" by data.val_fraction, {len(_entries(root, folders=True)):,} classes"
    elif formats["train"] == folder.FOLDER:
        text += f", {len(_entries(root / 'train', folders=True)):,} classes"
    elif (named := named_classes(root)) is not None:
        text += f", {len(named):,} classes"
    return str(root), formats, text if os.access(root, os.W_OK) else f"{text}, read-only"


def read_sample(root: str, split: str, data_format: str) -> CheckResult:
    """Probe: read and decode images spread over ``split``, from the disk if possible.

    In class folders, only those of the sample are listed; shards are indexed as in a run.

    Raises:
        DataError: the split cannot be indexed, or it has no images.
    """
    from PIL import Image

    from image_classification.data.formats.folder import FOLDER, is_class_folders, open_index
    from image_classification.data.transforms import decode_rgb

    index: Index
    if data_format == FOLDER and not is_class_folders(Path(root)):
        index = _folder_sample(Path(root), split)
    else:
        index = open_index(Path(root), split, None, data_format)
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16)).save(jpeg, "JPEG")
    # The first image loads the decoder, which is not timed.
    decode_rgb(np.frombuffer(bytearray(jpeg.getvalue()), dtype=np.uint8), "warm-up")
    num_bytes, read_s, decode_s = 0, 0.0, 0.0
    broken = []
    rows = _spread(len(index), _NUM_SAMPLES)
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
    good = len(rows) - len(broken)
    found = f"{good} of {len(rows)} {split} images decoded"
    if broken:
        remedy = (
            f"{command('dataset')} check {root} lists every broken image and makes training leave "
            "them out"
        )
        return fail("data-sample", f"{found}: {broken[0].rpartition(': ')[0]}", remedy)
    return ok(
        "data-sample",
        f"{found}, {num_bytes / 1e6:.1f} MB; reading {good / read_s:,.0f} images/s, "
        f"{num_bytes / read_s / 1e6:,.0f} MB/s; decoding {good / decode_s:,.0f} images/s in one "
        "thread",
    )


def _spread(total: int, count: int) -> list[int]:
    """Return ``count`` evenly spaced positions of ``total``, or all of them."""
    positions = np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))
    return [int(position) for position in positions]


def _entries(folder: Path, folders: bool) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir() == folders
        )


def _folder_sample(root: Path, split: str) -> FolderIndex:
    from image_classification.data.formats.index import FolderIndex, Names

    classes = _entries(root / split, folders=True)
    labels_read = _spread(len(classes), _NUM_SAMPLES)
    per_class = -(-_NUM_SAMPLES // len(labels_read))
    paths, labels = [], []
    for label in labels_read:
        names = _entries(root / split / classes[label], folders=False)
        files = [name for name in names if name.lower().endswith(IMAGE_EXTENSIONS)]
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
    # A file that cannot be opened raises the same error when it is read.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)
