"""Write a data set into shards: few large files, which network storage reads faster than many.

The images keep their order, labels and, unless they are to be made smaller, their bytes.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from image_classification.core.errors import ConfigError, DataError, unknown
from image_classification.data.formats import recordio, tfrecord, webdataset
from image_classification.data.formats.folder import SPLITS, has_split, open_index
from image_classification.data.formats.image_header import check_size
from image_classification.data.formats.index import Index, ShardIndex
from image_classification.data.formats.shards import CLASSES_FILE, MANIFEST
from image_classification.data.loaders.decode import decode_rgb

SHARD_IMAGES = 2_500
"""Images a shard: about 270 MB of ImageNet."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackReport:
    """What was written. images, shards: by split; num_bytes: of the shards.

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
    number: int
    label: int
    name: str
    content: bytes
    size: tuple[int, int]
    is_reencoded: bool


def pack(
    source: Path,
    out: Path,
    format: str,
    *,
    max_side: int | None = None,
    quality: int = 90,
    shard_images: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> PackReport:
    """Pack the data set ``source``, of any format, into the new folder ``out``.

    max_side: images whose longer side has more pixels are resized to it and stored as JPEG of
    ``quality``; None keeps every image's bytes. shard_images: images a shard (`SHARD_IMAGES`;
    ``recordio`` has one file a split). workers: threads. progress: called with images done and to
    be done; each counts twice, packed and read back.

    Everything is read back and compared before ``out`` appears under its name.

    Raises:
        ConfigError: an unknown format, or options that contradict each other.
        DataError: ``source`` cannot be used or read, ``out`` is not new or cannot be written.
    """
    _check_options(format, max_side, quality, shard_images)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} is there already: name a new folder for the packed data set")
    splits = [split for split in SPLITS if has_split(source, split)] or list(SPLITS)
    indexes: dict[str, Index] = {}
    for split in splits:
        known = indexes.get("train")
        indexes[split] = open_index(source, split, len(known.classes) if known else None)
    classes = next(iter(indexes.values())).classes
    total = 2 * sum(len(index) for index in indexes.values())
    count = _Counter(total, progress)
    num_reencoded = 0
    shards: dict[str, list[str]] = {}
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}-", dir=out.absolute().parent
        ) as scratch:
            built = Path(scratch) / "packed"
            built.mkdir()
            sums: dict[str, list[int]] = {}
            for split, index in indexes.items():
                written = _Written()
                names = _WRITERS[format](
                    built,
                    split,
                    index,
                    written.watch(_images(index, max_side, quality, workers), count),
                    shard_images or SHARD_IMAGES,
                )
                sums[split], shards[split] = written.sums, names
                num_reencoded += written.num_reencoded
            _write_json(built / CLASSES_FILE, list(classes))
            manifest = {
                split: {"images": len(index), "shards": shards[split]}
                for split, index in indexes.items()
            }
            _write_json(built / MANIFEST, {"format": 1, "layout": format, "splits": manifest})
            for split, index in indexes.items():
                _verify(built, format, index, sums[split], count)
            paths = [built / name for names in shards.values() for name in names]
            num_bytes = sum(path.stat().st_size for path in paths)
            os.rename(built, out)  # replaces an empty folder, refuses a filled one
    except OSError as error:
        raise DataError(
            f"cannot write the packed data set to {out}: {error.strerror}: name a folder that can "
            f"be written, with space for it"
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


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def one(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Written:
    """Notes what goes through to a writer, to be compared with what is read back."""

    def __init__(self) -> None:
        self.sums: list[int] = []
        self.num_reencoded = 0

    def watch(self, images: Iterator[_Image], count: _Counter) -> Iterator[_Image]:
        for image in images:
            self.sums.append(zlib.crc32(image.content))
            self.num_reencoded += image.is_reencoded
            count.one()
            yield image


def _check_options(format: str, max_side: int | None, quality: int, per: int | None) -> None:
    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS, "dataset pack"))
    if max_side is not None and max_side < 8:
        raise ConfigError(f"--max-side {max_side} is too small: give 8 pixels or more")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality {quality} is no JPEG quality: give 1 to 100")
    if per is not None and per < 1:
        raise ConfigError(f"--shard-images {per}: give 1 or more")
    if per is not None and format == "recordio":
        raise ConfigError("--shard-images does nothing with recordio: it has one file a split")


def _images(index: Index, max_side: int | None, quality: int, workers: int) -> Iterator[_Image]:
    """Yield the images in order, read and made smaller in threads (decoders let go of the GIL)."""

    def prepare(number: int) -> _Image:
        name = index.where(number)
        content = index.read(number)
        size = check_size(content, name)
        label = int(index.labels[number])
        if max_side is None or max(size) <= max_side:
            return _Image(number, label, index.name(number), content.tobytes(), size, False)
        scale = max_side / max(size)
        smaller = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        encoded = _encode(content, name, smaller, quality)
        return _Image(number, label, index.name(number), encoded, smaller, True)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending: deque[Future[_Image]] = deque()
        try:
            for number in range(len(index)):
                pending.append(pool.submit(prepare, number))
                if len(pending) > 4 * max(1, workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _encode(
    content: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    name: str,
    size: tuple[int, int],
    quality: int,
) -> bytes:
    from PIL import Image  # not needed where no image is made smaller

    pixels = decode_rgb(content, name).permute(1, 2, 0).contiguous().numpy()
    encoded = io.BytesIO()
    smaller = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    smaller.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def _shard_sizes(num_images: int, shard_images: int) -> list[int]:
    """Return the images of each shard: as equal as they can be."""
    num_shards = -(-num_images // shard_images)
    return [len(part) for part in np.array_split(np.empty(num_images, np.int8), num_shards)]


def _write_webdataset(
    folder: Path, split: str, index: Index, images: Iterator[_Image], shard_images: int
) -> list[str]:
    names: list[str] = []
    keys: set[str] = set()
    for number, size in enumerate(_shard_sizes(len(index), shard_images)):
        names.append(f"{split}-{number:06d}.tar")
        with tarfile.open(folder / names[-1], "w", format=tarfile.PAX_FORMAT) as tar:
            for _ in range(size):
                image = next(images)
                key = _key(index, image)
                if key in keys:
                    key = f"{key}-{image.number:08d}"
                keys.add(key)
                extension = "png" if image.content[:4] == b"\x89PNG" else "jpg"
                webdataset.write_sample(tar, key, extension, image.content, image.label)
    return names


def _write_tfrecord(
    folder: Path, split: str, index: Index, images: Iterator[_Image], shard_images: int
) -> list[str]:
    stem = {"train": "train", "val": "validation"}[split]
    sizes = _shard_sizes(len(index), shard_images)
    names = [f"{stem}-{number:05d}-of-{len(sizes):05d}" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        with open(folder / name, "wb") as file:
            for _ in range(size):
                image = next(images)
                tfrecord.write_record(
                    file,
                    image.content,
                    image.label,
                    index.classes[image.label],
                    image.name.rsplit("/", 1)[-1],
                    image.size,
                )
    return names


def _write_recordio(
    folder: Path, split: str, index: Index, images: Iterator[_Image], shard_images: int
) -> list[str]:
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(open(folder / f"{split}.rec", "wb"))
        offsets = stack.enter_context(open(folder / f"{split}.idx", "w", encoding="ascii"))
        for image in images:
            offset = recordio.write_record(file, image.content, image.label, image.number)
            offsets.write(f"{image.number}\t{offset}\n")
    return [f"{split}.rec"]


_WRITERS: dict[str, Callable[[Path, str, Index, Iterator[_Image], int], list[str]]] = {
    "webdataset": _write_webdataset,
    "tfrecord": _write_tfrecord,
    "recordio": _write_recordio,
}
FORMATS = tuple(_WRITERS)
"""What can be packed into."""


def _key(index: Index, image: _Image) -> str:
    """Return ``CLASS/STEM`` where the source has names, else the number; no dot in the stem."""
    name = image.name
    if isinstance(index, ShardIndex):
        if index.members is None:
            return f"{image.number:08d}"
        name = index.members[image.number]
    else:
        name = name.removeprefix(f"{index.split}/")
    folder, _, base = name.rpartition("/")
    stem = base.rpartition(".")[0].replace(".", "_")
    return f"{folder}/{stem}" if folder else stem


def _verify(folder: Path, format: str, index: Index, sums: list[int], count: _Counter) -> None:
    """Read everything back and compare."""
    packed = open_index(folder, index.split, len(index.classes), format)
    same = packed.classes == index.classes and np.array_equal(packed.labels, index.labels)
    for number, expected in enumerate(sums):
        same = same and zlib.crc32(packed.read(number).data) == expected
        count.one()
    if not same or len(packed) != len(sums):
        raise DataError(
            f"the packed {index.split} images read back differ from what was written: check the "
            f"disk, and pack again"
        )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
