"""Which JPEGs every decoder reads alike, told from the file's structure (ITU-T T.81, annex B)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
