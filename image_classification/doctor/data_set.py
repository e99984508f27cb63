"""Checks of the data set: is it there and whole by its folders, and does a sample decode.

`look` and `sample` run in processes of their own, since a network disk can hang.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import (
    AUTO,
    FOLDER,
    IMAGE_EXTENSIONS,
    SPLITS,
    check_classes,
    has_split,
    open_index,
    recognize,
)
from image_classification.data.formats.index import (
    Bytes,
    FolderIndex,
    Index,
    Names,
    ShardIndex,
)
from image_classification.data.formats.shards import named_classes
from image_classification.data.tools.demo import resolve_data_path
from image_classification.doctor.check import Check, fail, ok

NUM_SAMPLES = 50


@dataclass(frozen=True)
class Layout:
    """What a look at the folders tells. num_classes: None where only the images tell."""

    root: str
    formats: dict[str, str]
    num_classes: int | None
    is_writable: bool


@dataclass(frozen=True)
class Sampled:
    """What reading and decoding some images took, one after another.

    broken: messages of those that could not be.
    """

    split: str
    num_images: int
    num_bytes: int
    read_s: float
    decode_s: float
    broken: tuple[str, ...]


def look(path: str, layout: str, num_classes: int | None) -> Layout:
    """Recognise what is there. num_classes: the model's; None where none is asked about.

    Raises:
        DataError: no data set there, or not as a run needs it.
    """
    root = resolve_data_path(path)
    formats = {}
    for split in SPLITS:
        if split == "train" or has_split(root, split):
            formats[split] = recognize(root, split) if layout == AUTO else layout
            if num_classes is not None:
                check_classes(root, split, num_classes, layout)
    count: int | None
    if formats["train"] == FOLDER:
        count = sum(1 for _ in _entries(root / "train", folders=True))
    else:
        named = named_classes(root)
        count = None if named is None else len(named)
    return Layout(str(root), formats, count, os.access(root, os.W_OK))


def sample(root: str, split: str, layout: str, count: int = NUM_SAMPLES) -> Sampled:
    """Read and decode ``count`` images spread over ``split``, off the disk where that can be.

    Of class folders only those of the sample are listed; shards are indexed as a run does.

    Raises:
        DataError: the split cannot be indexed, or it holds no image.
    """
    from image_classification.data.loaders.decode import decode_rgb

    folder = Path(root)
    index: Index
    if layout == FOLDER:
        index = _folder_sample(folder, split, count)
    else:
        index = open_index(folder, split, None, layout)
    decode_rgb(_warm_up_image(), "warm-up")
    num_bytes, read_s, decode_s = 0, 0.0, 0.0
    broken = []
    rows = _spread(len(index), count)
    for row in rows:
        _drop_cached(index, row)
        start = time.perf_counter()
        try:
            content = index.read(row)
            loaded = time.perf_counter()
            read_s += loaded - start
            num_bytes += len(content)
            decode_rgb(content, index.where(row))
            decode_s += time.perf_counter() - loaded
        except DataError as error:
            broken.append(error.message)
    return Sampled(split, len(rows), num_bytes, read_s, decode_s, tuple(broken))


def _spread(total: int, count: int) -> list[int]:
    """Return ``count`` positions of ``total`` at equal distances, or all of them."""
    places = np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))
    return [int(place) for place in places]


def _entries(folder: Path, folders: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir() == folders:
                yield entry.name


def _folder_sample(root: Path, split: str, count: int) -> FolderIndex:
    classes = sorted(_entries(root / split, folders=True))
    chosen = _spread(len(classes), count)
    each = -(-count // len(chosen))
    paths, labels = [], []
    for label in chosen:
        name = classes[label]
        files = sorted(
            file
            for file in _entries(root / split / name, folders=False)
            if file.lower().endswith(IMAGE_EXTENSIONS)
        )
        for number in _spread(len(files), each) if files else ():
            paths.append(os.fsencode(f"{split}/{name}/{files[number]}"))
            labels.append(label)
    if not paths:
        raise DataError(
            f"the class folders in {root / split} hold no images ({', '.join(IMAGE_EXTENSIONS)}): "
            "put the images there"
        )
    return FolderIndex(root, split, tuple(classes), np.array(labels), Names.of(paths))


def _drop_cached(index: Index, row: int) -> None:
    """Ask the system to forget what it has cached of image ``row``; it may decline."""
    offset, length = 0, 0  # the whole file
    path = index.where(row)
    if isinstance(index, ShardIndex):
        path = os.path.join(index.root, index.shards[int(index.shard[row])])
        offset, length = int(index.offset[row]), int(index.length[row])
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # reading says why
    try:
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _warm_up_image() -> Bytes:
    """Return a JPEG whose decoding loads the decoder, which is not to be timed."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return np.frombuffer(bytearray(file.getvalue()), dtype=np.uint8)


def check_layout(layout: Layout) -> Check:
    """Say what was found there; `look` itself raises for what a run cannot use."""
    formats = list(dict.fromkeys(layout.formats.values()))
    if len(formats) == 1:
        parts = f"{formats[0]}, {' and '.join(layout.formats)}"
    else:
        parts = ", ".join(f"{split} as {kind}" for split, kind in layout.formats.items())
    classes = "" if layout.num_classes is None else f", {layout.num_classes:,} classes"
    access = "" if layout.is_writable else ", read-only"
    return ok("data-set", f"{layout.root}: {parts}{classes}{access}")


def check_sample(sampled: Sampled, root: str) -> Check:
    """Judge the sample: every image must decode."""
    name = "data-sample"
    good = sampled.num_images - len(sampled.broken)
    found = f"{good} of {sampled.num_images} {sampled.split} images decoded"
    if sampled.broken:
        remedy = (
            f"python -m image_classification dataset check {root} lists every broken image, and "
            "makes training leave those out"
        )
        return fail(name, f"{found}: {sampled.broken[0].rpartition(': ')[0]}", remedy)
    return ok(
        name,
        f"{found}, {sampled.num_bytes / 1e6:.1f} MB; reading {_rate(good, sampled.read_s)}, "
        f"{sampled.num_bytes / sampled.read_s / 1e6:,.0f} MB/s; decoding "
        f"{_rate(good, sampled.decode_s)} in one thread",
    )


def _rate(count: int, time_s: float) -> str:
    return f"{count / time_s:,.0f} images/s"
