"""Which JPEGs every decoder reads alike, told from the file's structure (ITU-T T.81, annex B).

The size of an image from its first bytes, so that nothing huge is ever decoded.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError

_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_ADOBE_SEGMENT = 0xEE
_END_MARKERS = frozenset({0xD9, 0xDA})
_FIRST_BYTES = 4096
"""Holds most headers; a large EXIF block or colour profile needs the rest of the file."""


def plain_jpeg_size(content: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a plain JPEG, None for any other content.

    Plain is Huffman-coded baseline or progressive, 8 bits, grey or YCbCr, and ending as it
    should. Decoders part ways over CMYK, over Adobe's colour transforms, and over what to put
    where a truncated file has nothing.
    """
    if bytes(content[:2]) != _START_OF_IMAGE or bytes(content[-2:]) != _END_OF_IMAGE:
        return None
    try:
        return _size(bytes(content[:_FIRST_BYTES]))
    except IndexError:
        pass
    try:
        return _size(bytes(content))
    except IndexError:
        return None


def _size(data: bytes) -> tuple[int, int] | None:
    """Walk the segments up to the frame; IndexError where ``data`` ends before it."""
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # any number of fill bytes
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker in _START_OF_FRAME:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            bits, components = data[at + 4], data[at + 9]
            plain = marker in _HUFFMAN_FRAMES and bits == 8 and components in (1, 3)
            # A height of 0 is given after the first scan only.
            return (width, height) if plain and width and height else None
        length = data[at + 2] << 8 | data[at + 3]
        if marker in _END_MARKERS or marker == _ADOBE_SEGMENT or length < 2:
            return None
        at += 2 + length


MAX_PIXELS = 178_956_970
"""More is refused unread: twice the size PIL takes for a decompression bomb, where it refuses."""

# Start-of-frame markers; C4, C8 and CC among them mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH_image_header = frozenset({0x01, *range(0xD0, 0xD9)})


def image_size(content: bytes | npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a JPEG, PNG, GIF or WebP; None where it cannot be told.

    EXIF orientation is not applied. Nothing is decoded.
    """
    data = _view(content)
    head = bytes(data[:32])
    try:
        if head[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", head, 16)
            return int(width), int(height)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            width, height = struct.unpack_from("<HH", head, 6)
            return int(width), int(height)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_size(head)
    except (IndexError, struct.error):
        pass
    return None


def check_size(content: bytes | npt.NDArray[np.uint8], name: str) -> tuple[int, int]:
    """Return (width, height) in pixels.

    Raises:
        DataError: no JPEG, PNG, GIF or WebP, or more than `MAX_PIXELS`; it names ``name``.
    """
    size = image_size(content)
    if size is None:
        raise DataError(
            f"cannot decode {name}: it has no header of a JPEG, PNG, GIF or WebP image: replace "
            f"or remove it"
        )
    width, height = size
    num_frames = _gif_frames(_view(content)) if bytes(content[:3]) == b"GIF" else 1
    if width * height * num_frames > MAX_PIXELS:
        raise DataError(
            f"cannot decode {name}: {width} x {height} pixels are more than {MAX_PIXELS:,}: make "
            f"it smaller or remove it"
        )
    return size


def _view(content: bytes | npt.NDArray[np.uint8]) -> memoryview:
    return memoryview(content) if isinstance(content, bytes) else content.data


def _jpeg_size(data: memoryview) -> tuple[int, int] | None:
    at = 2
    while True:
        while data[at] != 0xFF:  # libjpeg passes over stray bytes between segments as well
            at += 1
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return int(width), int(height)
        if marker in (0xD9, 0xDA):
            return None
        if marker not in _WITHOUT_LENGTH_image_header and marker != 0:
            at += struct.unpack_from(">H", data, at)[0]


def _gif_frames(data: memoryview) -> int:
    """Return the number of frames; each is decoded at full size."""
    num_frames = 0
    try:
        at = 13 + _gif_colours(data[10])
        while data[at] in (0x21, 0x2C):
            if data[at] == 0x2C:
                num_frames += 1
                at += 11 + _gif_colours(data[at + 9])
            else:
                at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
    except IndexError:
        pass
    return max(num_frames, 1)


def _gif_colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(head[24:27], "little") + 1
        return width, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
