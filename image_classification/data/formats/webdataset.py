"""WebDataset: tar shards of ``KEY.jpg`` (``.jpeg``, ``.png``) and ``KEY.cls`` members.

A key ends at the first dot of the member's base name; ``.cls`` holds the class number as text.
Only headers and labels are read; nothing is unpacked to a file or unpickled. Absolute paths,
``..``, links and devices are refused. Shards are files of the data set's folder: URLs and ``pipe:``
commands are not supported.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from image_classification.core.errors import DataError
from image_classification.data.formats.shards import ShardFormat, ShardImage, ShardReader

_MAX_READ_BYTES = 1 << 16
_MAX_LABEL_BYTES = 16
_IMAGES = ("jpg", "jpeg", "png")
_PAX_KEYS = (b"path=", b"size=", b"GNU.sparse", b"hdrcharset=")


class _Member(NamedTuple):
    name: bytes
    offset: int
    length: int


def scan(reader: ShardReader) -> Iterator[ShardImage]:
    """Yield the images of a shard; the label of each may come before or after it."""
    images: dict[bytes, _Member] = {}
    labels: dict[bytes, int] = {}
    for member in _members(reader):
        folder, slash, base = member.name.rpartition(b"/")
        stem, _, extension = base.partition(b".")
        key = folder + slash + stem
        kind = extension.decode(errors="replace").lower()
        if kind in _IMAGES:
            if key in images:
                raise reader.damaged(member.offset, f"two images are called {_shown(key)}")
            if member.length == 0:
                raise reader.damaged(member.offset, f"the image {_shown(member.name)} is empty")
            images[key] = member
        elif kind == "cls":
            labels[key] = _label(reader, member)
    for number, (key, image) in enumerate(images.items()):
        if key not in labels:
            raise reader.damaged(
                image.offset, f"the image {_shown(image.name)} has no .cls member with its label"
            )
        yield ShardImage(image.offset, image.length, labels[key], number, image.name, "")


def write_sample(tar: tarfile.TarFile, key: str, extension: str, content: bytes, label: int) -> str:
    """Append one image and its label; return the image's member name."""
    for name, data in ((f"{key}.cls", str(label).encode()), (f"{key}.{extension}", content)):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        tar.addfile(info, io.BytesIO(data))
    return f"{key}.{extension}"


FORMAT = ShardFormat(
    name="webdataset",
    pattern=r"(?:.*[-_])?{split}[-_]\d+\.tar",
    within=r"(?:.*[-_])?\d+\.tar",
    scan=scan,
)


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="replace"))


def _label(reader: ShardReader, member: _Member) -> int:
    text = reader.at(member.offset, member.length) if member.length <= _MAX_LABEL_BYTES else b""
    if not text.strip().isdigit():
        raise reader.damaged(member.offset, f"{_shown(member.name)} does not hold a class number")
    return int(text)


class _HeaderFile:
    """What tarfile needs of a file to read headers; a longer read is refused."""

    def __init__(self, reader: ShardReader, position: int) -> None:
        self._reader = reader
        self._position = position

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_READ_BYTES:
            raise self._reader.damaged(self._position, "a member's extended header is too long")
        count = max(0, min(count, self._reader.size_bytes - self._position))
        content = self._reader.at(self._position, count)
        self._position += count
        return content


def _members(reader: ShardReader) -> Iterator[_Member]:
    """Yield the regular files of a tar in any format that tarfile reads."""
    at = 0
    tar: Any = None
    while True:
        # Once there are headers for all later members, only tarfile applies them.
        member = None if tar is not None and tar.pax_headers else _plain_member(reader, at)
        if member is not None:
            next_at = member.offset + member.length
        else:
            tar, info = _next_of_tarfile(reader, tar, at)
            if info is None:
                break
            next_at = tar.offset
            # A negative size would lead tarfile back to where it was.
            if info.size < 0 or next_at <= at:
                raise reader.damaged(at, "a member's header has a negative size")
            member = _regular_file(reader, info, at)
        if member is not None:
            name = member.name
            if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name or not name:
                raise reader.damaged(at, f"the member name {_shown(name)} leads out of the shard")
            if member.offset + member.length > reader.size_bytes:
                raise reader.damaged(at, f"it ends inside the member {_shown(name)}")
            yield member
        at = next_at + -next_at % tarfile.BLOCKSIZE
        if at > reader.size_bytes:
            raise reader.damaged(next_at, "it ends inside the padding of a member")
    # tarfile also stops at a damaged header; a real end is a block of zeros or the end of the file.
    if at < reader.size_bytes and any(reader.at(at, tarfile.BLOCKSIZE)):
        raise reader.damaged(at, "no tar member begins there (compressed shards are not read)")


def _next_of_tarfile(reader: ShardReader, tar: Any, at: int) -> tuple[Any, tarfile.TarInfo | None]:
    """Return a TarFile (``tar``, if it is not None) and its member at ``at``, if there is one."""
    try:
        if tar is None:
            file = cast(Any, _HeaderFile(reader, at))
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
            if tar.firstmember is None:  # Python 3.10's `next` would seek to before the file
                return tar, None
        else:
            tar.offset = at
        info = tar.next()
    except (DataError, OSError):
        raise
    except Exception as error:  # of many kinds, for a hostile header
        raise reader.damaged(at, f"{error} (compressed shards are not read)") from error
    tar.members.clear()  # tarfile keeps every member otherwise
    return tar, info


def _regular_file(reader: ShardReader, info: tarfile.TarInfo, at: int) -> _Member | None:
    name = info.name.encode("utf-8", "surrogateescape")
    if any(key.startswith("GNU.sparse") for key in info.pax_headers):
        raise reader.damaged(at, f"the member {_shown(name)} is a sparse file")
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return _Member(name, info.offset_data, info.size)
    if not info.isdir():
        raise reader.damaged(
            at, f"the member {_shown(name)} is a link, a device or of an unknown kind"
        )
    return None


def _plain_member(reader: ShardReader, at: int) -> _Member | None:
    """Return the ustar file whose header is at ``at``; None if only tarfile reads it.

    A pax header that changes neither name nor size is skipped. This takes a quarter of the time of
    tarfile, which parses every field.
    """
    try:
        header = reader.at(at, tarfile.BLOCKSIZE)
        length = _plain_size(header)
        if header[156:157] == tarfile.XHDTYPE and length <= _MAX_READ_BYTES:
            records = reader.at(at + tarfile.BLOCKSIZE, length)
            if any(key in records for key in _PAX_KEYS):
                return None
            at += tarfile.BLOCKSIZE + length + -length % tarfile.BLOCKSIZE
            header = reader.at(at, tarfile.BLOCKSIZE)
            length = _plain_size(header)
    except (ValueError, DataError):
        return None
    if header[156:157] != tarfile.REGTYPE or header[257:265] != tarfile.POSIX_MAGIC:
        return None
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    return _Member(prefix + b"/" + name if prefix else name, at + tarfile.BLOCKSIZE, length)


def _plain_size(header: bytes) -> int:
    """Return the size that a tar header states in octal digits.

    Raises ValueError if its checksum is wrong or if a number has another form.
    """
    checksum = header[148:156]
    if _octal(checksum) != sum(header) - sum(checksum) + 8 * ord(" "):
        raise ValueError("wrong checksum")
    return _octal(header[124:136])


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits.isdigit():  # such as a sign or an underscore, which `int` accepts
        raise ValueError("no octal number")
    return int(digits, 8)
