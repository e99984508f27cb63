"""What one encoded image is, and whether training could use it."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass

from image_classification.core.errors import DataError
from image_classification.data.image_header import MAX_PIXELS, image_size
from image_classification.data.images import decode_rgb
from image_classification.data.index import Bytes

BROKEN_KINDS = ("empty", "truncated", "oversized", "undecodable", "unreadable")
"""Why an image is of no use; ``unreadable``: its bytes could not be had at all."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_OF_EXTENSION = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
_EXIF_ORIENTATION = 0x0112
# Others (such as PostScript) would start programs or read much for a header.
_PIL_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class ImageFacts:
    """One image, as `inspect_image` finds it.

    content_format: by its first bytes, ``unknown`` where none is recognised. mode: Pillow's
    (``RGB``, ``L``, ``CMYK`` …), '' where the header cannot be read. Sides in pixels as stored,
    0 where unknown. is_disguised: the name's extension says another format. is_oriented: EXIF
    asks for a rotation or a mirror, which training does not apply. broken: '' or one of
    `BROKEN_KINDS`, and reason: why, in one line.
    """

    num_bytes: int
    content_format: str
    mode: str
    width_px: int
    height_px: int
    is_disguised: bool
    is_oriented: bool
    broken: str
    reason: str


def inspect_image(content: Bytes, name: str) -> ImageFacts:
    """Look at and decode ``content``, ``[bytes]`` uint8; ``name`` may end in an extension.

    What the decoder of training refuses is broken; nothing is raised for it. An image of more
    pixels than the decoder's bound is not decoded.
    """
    data = content.tobytes()
    if not data:
        return no_content("empty", "the file is empty")
    kind = content_format(data)
    expected = _OF_EXTENSION.get(os.path.splitext(name)[1].lower(), "")
    width, height = image_size(data) or (0, 0)
    mode, orientation = _header(data)
    broken, reason = "", ""
    try:
        decode_rgb(content, name)
    except DataError as error:
        reason = error.message.removeprefix(f"cannot decode {name}: ")
        reason = reason.rsplit(": ", 1)[0]  # the remedy
        if width * height > MAX_PIXELS:
            broken = "oversized"
        else:
            broken = "truncated" if _is_cut_short(data) else "undecodable"
    return ImageFacts(
        num_bytes=len(data),
        content_format=kind,
        mode=mode,
        width_px=width,
        height_px=height,
        is_disguised=bool(expected) and kind not in ("unknown", expected),
        is_oriented=orientation not in (0, 1),
        broken=broken,
        reason=reason,
    )


def no_content(kind: str, reason: str) -> ImageFacts:
    """Return the facts of an image whose bytes are not there: ``empty`` or ``unreadable``."""
    assert kind in BROKEN_KINDS
    return ImageFacts(0, "unknown", "", 0, 0, False, False, kind, reason)


def content_format(data: bytes) -> str:
    """Name the format that ``data`` begins as; ``unknown`` where it is none of an image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _SIGNATURES if data.startswith(start)), "unknown")


def _header(data: bytes) -> tuple[str, int]:
    """Return (mode, EXIF orientation) as Pillow reads them; ('', 0) where it cannot."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images, damaged EXIF
        try:
            with Image.open(io.BytesIO(data), formats=_PIL_FORMATS) as image:
                return image.mode, _orientation(image)
        except Exception:  # Pillow's plugins raise of every kind on damaged headers
            return "", 0


def _orientation(image: object) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 0)  # type: ignore[attr-defined]
    except Exception:  # damaged EXIF does not make the pixels unusable
        return 0
    return value if isinstance(value, int) and 1 <= value <= 8 else 0


def _is_cut_short(data: bytes) -> bool:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_PIL_FORMATS) as image:
                image.load()
        except Exception as error:
            return "truncated" in str(error).lower()
    return False
