"""Cache the index of a packed data set in a file: scanning the shards takes minutes.

The file lies next to the shards, or in the cache folder if they are read-only. It is valid until
the size or modification time of a shard changes. An invalid or damaged file is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.core.files import replacement_file
from image_classification.data.formats.index import Columns
from image_classification.data.tools.demo import cache_root

_VERSION = 1

Scanned = tuple[Columns, dict[str, str]]
"""Columns of a `image_classification.data.formats.index.ShardIndex`, and class name by label."""

_COLUMN_TYPES: dict[str, type] = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "number": np.int64,
    "labels": np.int64,
    "text": np.uint8,
    "ends": np.int64,
}


def signature_of(layout: str, root: Path, shards: tuple[str, ...]) -> str:
    """Return the names, sizes and modification times of ``shards``, as JSON.

    Raises:
        DataError: a shard cannot be accessed.
    """
    files: list[tuple[str, int, int]] = []
    for shard in shards:
        for name in (shard, f"{shard.removesuffix('.rec')}.idx"):  # RecordIO's order of images
            try:
                status = os.stat(root / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unreadable_shard(root / name, error) from error
            files.append((name, status.st_size, status.st_mtime_ns))
    return json.dumps([_VERSION, layout, files])


def load(root: Path, split: str, signature: str) -> Scanned | None:
    """Return the cached index of the shards of ``signature``; None if there is no valid one."""
    files = json.loads(signature)[2]
    sizes = np.array([size for name, size, _ in files if name[-4:] != ".idx"], dtype=np.int64)
    for path in _cache_paths(root, split):
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                header = json.loads(file["said"].tobytes())
                if header["signature"] != signature:
                    continue
                columns = {name: file[name] for name in _COLUMN_TYPES}
        except Exception:  # damaged in whatever way: the shards are scanned again
            continue
        if _is_consistent(columns, sizes):
            return columns, header["class_names"]
    return None


def save(root: Path, split: str, signature: str, scanned: Scanned) -> None:
    """Write the index to the first place that is writable; do nothing if there is none."""
    columns, class_names = scanned
    header = json.dumps({"signature": signature, "class_names": class_names}).encode()
    content: Columns = {"said": np.frombuffer(header, dtype=np.uint8), **columns}
    for path in _cache_paths(root, split):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacement_file(path) as file:
                np.savez(file, **content)  # type: ignore[arg-type]
        except OSError:
            continue
        return


def unreadable_shard(path: Path, error: OSError) -> DataError:
    """Return the error for a shard that the system refuses to read."""
    return DataError(
        f"cannot read shard {path}: {error.strerror}: check its permissions and its mount"
    )


def _cache_paths(root: Path, split: str) -> list[Path]:
    paths = [root / f".{split}.index.npz"]
    try:
        digest = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
        paths.append(cache_root() / "indexes" / f"{digest}-{split}.npz")
    except DataError:  # no home folder
        pass
    return paths


def _is_consistent(columns: Columns, sizes: npt.NDArray[np.int64]) -> bool:
    """Return whether the columns fit one another and the shards; anybody may have written them."""
    if any(columns[name].dtype != kind for name, kind in _COLUMN_TYPES.items()):
        return False
    count = columns["labels"].shape
    ends, shard, offset = columns["ends"], columns["shard"], columns["offset"]
    if any(columns[n].shape != count for n in ("shard", "offset", "length", "number")):
        return False
    if len(count) != 1 or (len(ends) and ends.shape != count):
        return False
    if count[0] == 0:
        return True
    in_order = not len(ends) or bool(
        (np.diff(ends) >= 0).all() and ends[0] >= 0 and ends[-1] == len(columns["text"])
    )
    if not in_order or shard.min() < 0 or shard.max() >= len(sizes) or columns["labels"].min() < 0:
        return False
    fits = (offset >= 0) & (columns["length"] > 0) & (offset <= sizes[shard] - columns["length"])
    return bool(fits.all())
