"""Sizes of pictures from their headers: what is too large is refused before a decoder makes room for it."""

from __future__ import annotations

import struct

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 (ITU-T T.81, table B.1)
_TIFF_FORMATS = {3: "H", 4: "I"}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


def read_size(data: bytes) -> tuple[int, int] | None:
    """Read the size that a picture's header states.

    Args:
        data: a whole PNG, JPEG, WebP, BMP or TIFF file.

    Returns:
        Width and height in pixels, before it is turned upright; None if the header is damaged or of another format.
    """
    try:
        return _read(data)
    except (struct.error, IndexError):
        return None


def _read(data: bytes) -> tuple[int, int] | None:
    size = None
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = struct.unpack_from(">II", data, 16)
    elif data.startswith(b"\xff\xd8\xff"):
        size = _read_jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = _read_webp(data)
    elif data.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", data, 18)
        size = abs(width), abs(height)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        size = _read_tiff(data)
    return size


def _read_jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while data[at] == 0xFF:
        if data[at + 1] in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _read_webp(data: bytes) -> tuple[int, int] | None:
    """RFC 9649, 2.5 to 2.7."""
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _read_tiff(data: bytes) -> tuple[int, int] | None:
    """TIFF 6.0, section 2: the first directory's ImageWidth and ImageLength."""
    order = "<" if data[:1] == b"I" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    found = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and kind in _TIFF_FORMATS:
            (found[tag],) = struct.unpack_from(order + _TIFF_FORMATS[kind], data, entry + 8)
    return (found[_TIFF_WIDTH], found[_TIFF_HEIGHT]) if len(found) == 2 else None
