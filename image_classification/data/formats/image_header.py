"""Read an image's size and EXIF orientation from its header, without decoding it.

Sizes are checked before decoding, so that no decoder gets a huge image. The same walk over a JPEG's
segments (ITU-T T.81, annex B) finds the JPEGs that all decoders decode in the same way.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: the size from which PIL raises DecompressionBombError."""

_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
# Start-of-frame markers; C4, C8 and CC among them mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_END_OF_HEADER = frozenset({0xD9, 0xDA})
_EXIF_SEGMENT, _ADOBE_SEGMENT = 0xE1, 0xEE
_EXIF = b"Exif\0\0"
# Tags of TIFF 6.0, whose structure EXIF has as well.
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I"}

Content = bytes | npt.NDArray[np.uint8]


class _JpegFrame(NamedTuple):
    width_px: int
    height_px: int
    is_plain: bool
    orientation: int


def image_size(content: Content) -> tuple[int, int] | None:
    """Return (width, height) in pixels of an image as stored; None if the header is unclear.

    Knows JPEG, PNG, GIF, WebP, BMP, TIFF and HEIC. EXIF orientation is not applied.
    """
    data = _view(content)
    head = bytes(data[:32])
    try:
        if head[:2] == _START_OF_IMAGE:
            frame = _jpeg_frame(data)
            return None if frame is None else (frame.width_px, frame.height_px)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return _pair(">II", head, 16)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return _pair("<HH", head, 6)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_size(head)
        if head[:2] == b"BM":
            width, height = _pair("<ii", head, 18)  # a negative height: stored top down
            return (width, abs(height)) if width > 0 and height else None
        if head[:4] in _TIFF_ORDERS:
            tags = _tiff_tags(data)
            return tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
        if head[4:8] == b"ftyp":
            return _heic_size(data)
    except (KeyError, IndexError, struct.error):
        pass
    return None


def exif_orientation(content: Content) -> int:
    """Return the EXIF orientation, 1 to 8, of a JPEG, PNG or WebP; 1 without a valid one.

    1 for other formats as well: their decoders turn the image themselves.
    """
    data = _view(content)
    head = bytes(data[:16])
    try:
        if head[:2] == _START_OF_IMAGE:
            frame = _jpeg_frame(data)
            return 1 if frame is None else frame.orientation
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return _orientation(_chunk(data, 8, ">", b"eXIf"))
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            exif = _chunk(data, 12, "<", b"EXIF")
            return _orientation(exif[len(_EXIF) :] if exif[: len(_EXIF)] == _EXIF else exif)
    except (IndexError, struct.error):
        pass
    return 1


def is_turned(orientation: int) -> bool:
    """Return whether the EXIF orientation exchanges width and height."""
    return orientation >= 5


def check_size(content: Content, name: str) -> tuple[int, int]:
    """Return (width, height) in pixels; ``name`` is what errors call the image.

    Raises:
        DataError: not an image of a known format, or more than `MAX_PIXELS`.
    """
    size = image_size(content)
    if size is None:
        raise DataError(
            f"cannot decode {name}: it has no header of a JPEG, PNG, GIF, WebP, BMP, TIFF or HEIC "
            f"image: replace or remove it"
        )
    width, height = size
    num_frames = _gif_frames(_view(content)) if bytes(content[:3]) == b"GIF" else 1
    if width * height * num_frames > MAX_PIXELS:
        raise DataError(
            f"cannot decode {name}: {width} x {height} pixels are more than {MAX_PIXELS:,}: make "
            f"it smaller or remove it"
        )
    return size


def plain_jpeg_size(
    content: npt.NDArray[np.uint8], upright: bool = False
) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a plain JPEG, None for any other content.

    upright: after its EXIF orientation is applied.

    Plain means Huffman-coded baseline or progressive, 8 bits, gray or YCbCr, well-formed segments,
    and an end-of-image marker. Decoders differ on CMYK, on Adobe's color transforms and on what
    to fill in where a file is truncated.
    """
    if bytes(content[:2]) != _START_OF_IMAGE or bytes(content[-2:]) != _END_OF_IMAGE:
        return None
    try:
        frame = _jpeg_frame(content.data)
    except (IndexError, struct.error):
        return None
    if frame is None or not frame.is_plain:
        return None
    if upright and is_turned(frame.orientation):
        return frame.height_px, frame.width_px
    return frame.width_px, frame.height_px


def _view(content: Content) -> memoryview:
    return memoryview(content) if isinstance(content, bytes) else content.data


def _pair(layout: str, data: bytes | memoryview, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, at)
    return int(first), int(second)


def _jpeg_frame(data: memoryview) -> _JpegFrame | None:
    """Walk the segments up to the frame header; None if there is no frame before the scan.

    Raises IndexError or struct.error where ``data`` ends before that.
    """
    at, is_plain, orientation = 2, True, 1
    while True:
        start = at
        while data[at] != 0xFF:  # libjpeg skips stray bytes between segments as well
            at += 1
        is_plain = is_plain and at == start
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in _FRAMES:
            height, width = _pair(">HH", data, at + 3)
            bits, components = data[at + 2], data[at + 7] if at + 7 < len(data) else 0
            is_plain = is_plain and marker in _HUFFMAN_FRAMES and bits == 8
            # A height of 0 means that it is given after the first scan.
            is_plain = is_plain and components in (1, 3) and width > 0 and height > 0
            return _JpegFrame(width, height, is_plain, orientation)
        if marker in _END_OF_HEADER:
            return None
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == 0:
            is_plain = False
            continue
        length = data[at] << 8 | data[at + 1]
        is_plain = is_plain and marker != _ADOBE_SEGMENT and length >= 2
        if marker == _EXIF_SEGMENT and data[at + 2 : at + 8] == _EXIF:
            orientation = _orientation(data[at + 8 : at + length])
        at += length


def _orientation(exif: memoryview) -> int:
    """Return the orientation in EXIF data (TIFF without an image); 1 if there is no valid one."""
    try:
        value = _tiff_tags(exif).get(_TIFF_ORIENTATION, 1)
    except (KeyError, IndexError, struct.error):
        return 1
    return value if 1 <= value <= 8 else 1


def _tiff_tags(data: memoryview) -> dict[int, int]:
    """Return the integer tags of the first directory: tag -> its first value."""
    order = _TIFF_ORDERS[bytes(data[:4])]
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    tags = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if kind in _TIFF_INTEGERS:
            tags[tag] = struct.unpack_from(order + _TIFF_INTEGERS[kind], data, entry + 8)[0]
    return tags


def _chunk(data: memoryview, at: int, order: str, name: bytes) -> memoryview:
    """Return the content of the first chunk ``name`` of a PNG (>) or RIFF (<); empty without one.

    Raises struct.error where ``data`` ends before it.
    """
    while at < len(data):
        is_png = order == ">"
        (length,) = struct.unpack_from(f"{order}I", data, at if is_png else at + 4)
        kind = bytes(data[at + 4 : at + 8] if is_png else data[at : at + 4])
        if kind == name:
            return data[at + 8 : at + 8 + length]
        # PNG ends a chunk with a checksum, RIFF pads it to an even length.
        at += 8 + length + (4 if is_png else length % 2)
    return data[:0]


def _heic_size(data: memoryview) -> tuple[int, int] | None:
    """Return the largest size among the ``ispe`` properties: the image's, not its tiles'."""
    content, sizes, at = bytes(data[:65536]), [], 0
    while (at := content.find(b"ispe", at) + 4) >= 4:
        sizes.append(_pair(">II", content, at + 4))
    return max(sizes, default=None)


def _gif_frames(data: memoryview) -> int:
    """Return the number of frames of a GIF; each is decoded at full size."""
    num_frames = 0
    try:
        at = 13 + _gif_color_table_bytes(data[10])
        while data[at] in (0x21, 0x2C):
            if data[at] == 0x2C:
                num_frames += 1
                at += 11 + _gif_color_table_bytes(data[at + 9])
            else:
                at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
    except IndexError:
        pass
    return max(num_frames, 1)


def _gif_color_table_bytes(flags: int) -> int:
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
        width, height = _pair("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
