"""Write a data set into shards: few large files, which network storage reads faster than many.

The images keep their order, their labels and, unless ``max_side`` makes them smaller, their bytes.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from image_classification.core.class_folders import SPLITS
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats import recordio, tfrecord, webdataset
from image_classification.data.formats.folder import has_split, open_index
from image_classification.data.formats.image_header import check_size, exif_orientation
from image_classification.data.formats.index import Index, ShardIndex
from image_classification.data.formats.shards import CLASSES_FILE, MANIFEST
from image_classification.data.tools.parallel import Progress, no_progress
from image_classification.data.transforms import decode_rgb

SHARD_IMAGES = 2_500
"""Images per shard: about 270 MB of ImageNet."""


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote. images, shards: number per split; num_bytes: of all shards.

    num_reencoded: images made smaller; num_quarantined: train images left out.
    """

    format: str
    num_classes: int
    images: dict[str, int]
    shards: dict[str, int]
    num_bytes: int
    num_reencoded: int
    num_quarantined: int


class _Image(NamedTuple):
    """An image to write. size: width and height in pixels."""

    number: int
    label: int
    name: str
    content: bytes
    size: tuple[int, int]
    is_reencoded: bool = False


def pack(
    source: Path,
    out: Path,
    format: str,
    *,
    max_side: int | None = None,
    quality: int = 90,
    shard_images: int | None = None,
    workers: int = 2,
    progress: Progress = no_progress,
) -> PackReport:
    """Pack the data set ``source``, of any format, into the new folder ``out``.

    format: one of `FORMATS`. max_side: images with a longer side of more pixels are resized to it
    and stored as JPEG of ``quality``; None keeps the bytes of every image. shard_images: images per
    shard (default `SHARD_IMAGES`; ``recordio`` has one file per split). workers: threads. progress:
    counts each image twice, once packed and once read back.

    Everything is read back and compared before ``out`` is renamed into place.

    Raises:
        ConfigError: a value out of range, or options that contradict each other.
        DataError: ``source`` cannot be read, or ``out`` is not empty or cannot be written.
    """
    _check_options(format, max_side, quality, shard_images)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists already: name a new folder for the packed data set")
    indexes: dict[str, Index] = {}
    num_classes = None
    for split in [split for split in SPLITS if has_split(source, split)] or SPLITS:
        indexes[split] = open_index(source, split, num_classes)
        num_classes = len(indexes[split].classes)
    classes = next(iter(indexes.values())).classes
    total = 2 * sum(map(len, indexes.values()))
    numbers = itertools.count(1)

    def count() -> None:
        progress("images", next(numbers), total)

    shards: dict[str, list[str]] = {}
    checksums: dict[str, list[int]] = {split: [] for split in indexes}
    num_reencoded = 0

    def packed_images(split: str) -> Iterator[_Image]:
        nonlocal num_reencoded
        for image in _images(indexes[split], max_side, quality, workers):
            checksums[split].append(zlib.crc32(image.content))
            num_reencoded += image.is_reencoded
            count()
            yield image

    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=parent) as scratch:
            built = Path(scratch) / "packed"
            built.mkdir()
            for split, index in indexes.items():
                shards[split] = _WRITERS[format](
                    built, index, packed_images(split), shard_images or SHARD_IMAGES
                )
            if not any(index.unnamed for index in indexes.values()):
                _write_json(built / CLASSES_FILE, list(classes))
            splits = {
                split: {"images": len(index), "shards": shards[split]}
                for split, index in indexes.items()
            }
            _write_json(built / MANIFEST, {"format": 1, "layout": format, "splits": splits})
            for split, index in indexes.items():
                _verify(built, format, index, checksums[split], count)
            num_bytes = sum((built / name).stat().st_size for s in shards.values() for name in s)
            os.rename(built, out)  # replaces an empty folder, refuses a filled one
    except OSError as error:
        raise DataError(
            f"cannot write the packed data set to {out}: {error.strerror}: name a writable folder "
            f"with enough free space"
        ) from error
    return PackReport(
        format=format,
        num_classes=len(classes),
        images={split: len(index) for split, index in indexes.items()},
        shards={split: len(names) for split, names in shards.items()},
        num_bytes=num_bytes,
        num_reencoded=num_reencoded,
        num_quarantined=sum(index.num_quarantined for index in indexes.values()),
    )


def _check_options(
    format: str, max_side: int | None, quality: int, shard_images: int | None
) -> None:
    if max_side is not None and max_side < 8:
        raise ConfigError(f"--max-side {max_side} is too small: give 8 pixels or more")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality {quality} is not a JPEG quality: give 1 to 100")
    if shard_images is not None and shard_images < 1:
        raise ConfigError(f"--shard-images {shard_images}: give 1 or more")
    if shard_images is not None and format == "recordio":
        raise ConfigError(
            "--shard-images has no effect with recordio, which has one file per split: leave it out"
        )


def _images(index: Index, max_side: int | None, quality: int, workers: int) -> Iterator[_Image]:
    """Yield the images in order, read and resized in threads (decoders release the GIL)."""

    def load(number: int) -> _Image:
        where = index.where(number)
        content = index.read(number)
        size = check_size(content, where)
        label, name = int(index.labels[number]), index.name(number)
        if max_side is None or max(size) <= max_side:
            return _Image(number, label, name, content.tobytes(), size)
        pixels = decode_rgb(content, where).permute(1, 2, 0).contiguous().numpy()
        # Not the header's size: decoders of TIFF and HEIC turn the image themselves.
        height, width = pixels.shape[:2]
        scale = max_side / max(size)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        encoded = io.BytesIO()
        smaller = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        exif = Image.Exif()
        if (orientation := exif_orientation(content)) != 1:
            exif[ExifTags.Base.Orientation] = orientation
        smaller.save(encoded, "JPEG", quality=quality, exif=exif)
        return _Image(number, label, name, encoded.getvalue(), size, is_reencoded=True)

    workers = max(1, workers)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[_Image]] = deque()
        try:
            for number in range(len(index)):
                pending.append(pool.submit(load, number))
                if len(pending) > 4 * workers:  # bounds the images held in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _shards(
    images: Iterator[_Image], num_images: int, shard_images: int
) -> Iterator[tuple[int, int, Iterator[_Image]]]:
    """Yield (number, number of shards, images) of each shard; their sizes differ by at most 1."""
    num_shards = -(-num_images // shard_images)
    for number in range(num_shards):
        size = num_images // num_shards + (number < num_images % num_shards)
        yield number, num_shards, itertools.islice(images, size)


def _write_webdataset(
    folder: Path, index: Index, images: Iterator[_Image], shard_images: int
) -> list[str]:
    names: list[str] = []
    keys: set[str] = set()
    for number, _, shard in _shards(images, len(index), shard_images):
        names.append(f"{index.split}-{number:06d}.tar")
        with tarfile.open(folder / names[-1], "w", format=tarfile.PAX_FORMAT) as tar:
            for image in shard:
                key = _sample_key(index, image)
                if key in keys:
                    key = f"{key}-{image.number:08d}"
                keys.add(key)
                extension = "png" if image.content[:4] == b"\x89PNG" else "jpg"
                webdataset.write_sample(tar, key, extension, image.content, image.label)
    return names


def _write_tfrecord(
    folder: Path, index: Index, images: Iterator[_Image], shard_images: int
) -> list[str]:
    stem = {"train": "train", "val": "validation"}[index.split]
    names: list[str] = []
    for number, num_shards, shard in _shards(images, len(index), shard_images):
        names.append(f"{stem}-{number:05d}-of-{num_shards:05d}")
        with open(folder / names[-1], "wb") as file:
            for image in shard:
                class_name, base = index.classes[image.label], image.name.rsplit("/", 1)[-1]
                tfrecord.write_record(
                    file, image.content, image.label, class_name, base, image.size
                )
    return names


def _write_recordio(
    folder: Path, index: Index, images: Iterator[_Image], shard_images: int
) -> list[str]:
    name = f"{index.split}.rec"
    with (
        open(folder / name, "wb") as file,
        open(folder / f"{index.split}.idx", "w", encoding="ascii") as offsets,
    ):
        for image in images:
            offset = recordio.write_record(file, image.content, image.label, image.number)
            offsets.write(f"{image.number}\t{offset}\n")
    return [name]


_WRITERS: dict[str, Callable[[Path, Index, Iterator[_Image], int], list[str]]] = {
    "webdataset": _write_webdataset,
    "tfrecord": _write_tfrecord,
    "recordio": _write_recordio,
}
FORMATS = tuple(_WRITERS)
"""The formats that `pack` can write."""


def _sample_key(index: Index, image: _Image) -> str:
    """Return ``CLASS/STEM`` without a dot in the stem, or the number if there are no names."""
    name = image.name
    if isinstance(index, ShardIndex):
        if index.names is None:
            return f"{image.number:08d}"
        name = index.names[image.number]
    else:
        name = name.removeprefix(f"{index.split}/")
    folder, _, base = name.rpartition("/")
    stem = base.rpartition(".")[0].replace(".", "_")
    return f"{folder}/{stem}" if folder else stem


def _verify(
    folder: Path, format: str, index: Index, checksums: list[int], count: Callable[[], None]
) -> None:
    """Read everything back and compare it with what was written."""
    packed = open_index(folder, index.split, len(index.classes), format)
    same = packed.classes == index.classes and np.array_equal(packed.labels, index.labels)
    for number, expected in enumerate(checksums):
        same = same and zlib.crc32(packed.read(number).data) == expected
        count()
    if not same or len(packed) != len(checksums):
        raise DataError(
            f"the packed {index.split} images differ from what was written when read back: check "
            f"the disk, and pack again"
        )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
