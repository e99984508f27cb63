"""WebDataset: tar shards of ``KEY.jpg`` (``.jpeg``, ``.png``) and ``KEY.cls`` members.

A key reaches to the first dot of the member's base name; ``.cls`` holds the class number as text.
Only headers are read, and nothing is ever unpacked to a file or unpickled: ustar, pax and GNU
long names are understood; absolute paths, ``..``, links and devices are refused. Shards are files
of the data set's folder: addresses and ``pipe:`` commands are none.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from image_classification.data.formats.shards import Found, ShardFormat, Window

_BLOCK_BYTES = 512
_LONGEST_NAME_BYTES = 1 << 16
_LONGEST_LABEL_BYTES = 16
_IMAGES = ("jpg", "jpeg", "png")
_FILE, _OLD_FILE, _CONTIGUOUS, _FOLDER = b"0", b"\0", b"7", b"5"
_GNU_NAME, _GNU_LINK, _PAX, _PAX_ALL = b"L", b"K", b"x", b"g"


class _Member(NamedTuple):
    name: bytes
    offset: int
    length: int


def scan(window: Window) -> Iterator[Found]:
    """Go through a shard; each image needs a label, before or after it."""
    images: dict[bytes, _Member] = {}
    labels: dict[bytes, int] = {}
    for member in _members(window):
        folder, _, base = member.name.rpartition(b"/")
        stem, _, extension = base.partition(b".")
        key = folder + b"/" + stem if folder else stem
        kind = extension.decode(errors="replace").lower()
        if kind in _IMAGES:
            if key in images:
                raise window.damaged(member.offset, f"two images are called {_shown(key)}")
            if member.length == 0:
                raise window.damaged(member.offset, f"the image {_shown(member.name)} is empty")
            images[key] = member
        elif kind == "cls":
            labels[key] = _label(window, member)
    for number, (key, image) in enumerate(images.items()):
        if key not in labels:
            raise window.damaged(
                image.offset, f"the image {_shown(image.name)} has no .cls member with its label"
            )
        yield Found(image.offset, image.length, labels[key], number, image.name, "")


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


def _label(window: Window, member: _Member) -> int:
    text = window.at(member.offset, member.length) if member.length <= _LONGEST_LABEL_BYTES else b""
    if not text.strip().isdigit():
        raise window.damaged(member.offset, f"{_shown(member.name)} does not hold a class number")
    return int(text)


def _members(window: Window) -> Iterator[_Member]:
    """Yield the regular files of a tar (POSIX.1-2001 pax, and GNU's long names)."""
    at = 0
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    for_all: dict[bytes, bytes] = {}
    while at < window.size_bytes:
        header = window.at(at, _BLOCK_BYTES)
        if not any(header):
            return
        _check_sum(window, at, header)
        kind = header[156:157]
        length = _number(window, at, header[124:136])
        content = at + _BLOCK_BYTES
        if kind in (_GNU_NAME, _GNU_LINK, _PAX, _PAX_ALL):
            if length > _LONGEST_NAME_BYTES:
                raise window.damaged(at, "a member's extended header is too long")
            extended = window.at(content, length)
            if kind == _GNU_NAME:
                long_name = extended.rstrip(b"\0")
            elif kind == _PAX:
                pax = _pax_records(window, content, extended)
            elif kind == _PAX_ALL:
                for_all.update(_pax_records(window, content, extended))
        else:
            known = {**for_all, **pax}
            name = long_name or known.get(b"path") or _name(header)
            if any(key.startswith(b"GNU.sparse") for key in known):
                raise window.damaged(at, f"the member {_shown(name)} is a sparse file")
            if b"size" in known:
                length = _decimal(window, at, known[b"size"])
            long_name, pax = None, {}
            if kind in (_FILE, _OLD_FILE, _CONTIGUOUS) and not name.endswith(b"/"):
                _check_name(window, at, name)
                if content + length > window.size_bytes:
                    raise window.damaged(at, f"it ends inside the member {_shown(name)}")
                yield _Member(name, content, length)
            elif kind == _FOLDER or name.endswith(b"/"):
                length = 0
            else:
                raise window.damaged(
                    at, f"the member {_shown(name)} is a link, a device or of an unknown kind"
                )
        at = content + length + -length % _BLOCK_BYTES
    if at != window.size_bytes:
        raise window.damaged(window.size_bytes, "it ends inside a member")


def _check_sum(window: Window, at: int, header: bytes) -> None:
    said = _number(window, at, header[148:156])
    if said != sum(header) - sum(header[148:156]) + 8 * 32:
        raise window.damaged(at, "no tar member begins there (compressed shards are not read)")


def _check_name(window: Window, at: int, name: bytes) -> None:
    if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name or not name:
        raise window.damaged(at, f"the member name {_shown(name)} leads out of the shard")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0")[0]
        return prefix + b"/" + name if prefix else name
    return name


def _number(window: Window, at: int, text: bytes) -> int:
    if text[0] & 0x80:  # GNU's binary numbers, for what eleven octal digits do not hold
        value = int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
        if text[0] != 0x80:
            raise window.damaged(at, "a member's header has a negative number")
        return value
    digits = text.strip(b" \0")
    if digits.strip(b"01234567"):
        raise window.damaged(at, "no tar member begins there (compressed shards are not read)")
    return int(digits, 8) if digits else 0


def _decimal(window: Window, at: int, text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise window.damaged(at, "a member's extended header has no proper size")
    return int(text)


def _pax_records(window: Window, at: int, content: bytes) -> dict[bytes, bytes]:
    """Return the ``LENGTH KEY=VALUE`` lines of an extended header."""
    records: dict[bytes, bytes] = {}
    while content:
        digits, space, _ = content.partition(b" ")
        length = _decimal(window, at, digits)
        line = content[len(digits) + 1 : length]
        if not space or length > len(content) or not line.endswith(b"\n") or b"=" not in line:
            raise window.damaged(at, "a member's extended header is misshapen")
        key, _, value = line[:-1].partition(b"=")
        records[key] = value
        content = content[length:]
    return records
