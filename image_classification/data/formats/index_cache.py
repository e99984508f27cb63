"""The index of a packed data set, kept in a file: going through the shards takes minutes.

It lies beside the shards, or below the cache folder where they are read-only, and counts until a
shard's size or time of change differs. Whatever is wrong with it, it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.data.tools.demo import cache_root

_VERSION = 1

Columns = dict[str, npt.NDArray[Any]]
Kept = tuple[Columns, dict[str, str]]
"""The columns of `image_classification.data.formats.index.ShardIndex`, and class names by label."""

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
    """Return what tells these shards from changed ones: names, sizes, times of change.

    Raises:
        DataError: a shard cannot be looked at.
    """
    files: list[tuple[str, int, int]] = []
    for shard in shards:
        for name in (shard, f"{shard.removesuffix('.rec')}.idx"):  # RecordIO's order of images
            try:
                status = os.stat(root / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unreadable(root / name, error) from error
            files.append((name, status.st_size, status.st_mtime_ns))
    return json.dumps([_VERSION, layout, files])


def load(root: Path, split: str, signature: str) -> Kept | None:
    """Return the kept index of the shards of ``signature``; None where none is sound."""
    sizes = np.array([size for _, size, _ in json.loads(signature)[2]], dtype=np.int64)
    shards_only = [i for i, (n, _, _) in enumerate(json.loads(signature)[2]) if n[-4:] != ".idx"]
    for path in _kept_paths(root, split):
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                said = json.loads(file["said"].tobytes())
                if said["signature"] != signature:
                    continue
                columns = {name: file[name] for name in _COLUMN_TYPES}
        except Exception:  # whatever is wrong with it: it is made anew
            continue
        if _is_sound(columns, sizes[shards_only]):
            return columns, said["class_names"]
    return None


def keep(root: Path, split: str, signature: str, kept: Kept) -> None:
    """Keep the index in the first place that can be written; it only saves time."""
    columns, class_names = kept
    said = json.dumps({"signature": signature, "class_names": class_names}).encode()
    content = {"said": np.frombuffer(said, dtype=np.uint8), **columns}
    any(_written(path, content) for path in _kept_paths(root, split))


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a shard that the system does not let us read."""
    return DataError(
        f"cannot read shard {path}: {error.strerror}: check its permissions and its mount"
    )


def _kept_paths(root: Path, split: str) -> list[Path]:
    paths = [root / f".{split}.index.npz"]
    try:
        where = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
        paths.append(cache_root() / "indexes" / f"{where}-{split}.npz")
    except DataError:  # no home folder: the index is made anew each time
        pass
    return paths


def _is_sound(columns: Columns, sizes: npt.NDArray[np.int64]) -> bool:
    """Return whether the columns fit one another and the shards, whoever wrote them."""
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


def _written(path: Path, content: dict[str, npt.NDArray[Any]]) -> bool:
    """Write ``content`` whole; return whether that was possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **content)  # type: ignore[arg-type]
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError:
        return False
    return True
