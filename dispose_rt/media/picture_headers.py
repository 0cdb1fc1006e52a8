"""Checks what the headers of a picture file say before a decoder sees it: sizes, checksums, lists that never end."""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    ICCPROFILE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    ROWSPERSTRIP,
    SAMPLESPERPIXEL,
    TILELENGTH,
    TILEWIDTH,
    ImageFileDirectory_v2,
)

MAX_PNG_CHUNKS = 2**17
"""Enough for IDAT chunks of 4 kB each in the largest file."""
MAX_JPEG_SEGMENTS = 2**12
MAX_JPEG_SCANS = 32
"""Every scan of a progressive JPEG costs time, however few bytes it has; encoders write about ten."""
MAX_TIFF_TAGS = 2**12
MAX_EXIF_BYTES = 2**17
"""Pillow reads every EXIF entry into memory, and all of them may point to the same bytes."""
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # but stuffed bytes, restarts and padding
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_BODY = (0x01, 0xD8)
_PNG_START = 8
_PNG_DEPTH_AT = 8
"""Offset of the bits per channel in IHDR (ISO/IEC 15948, 11.2.1)."""

_PLANES, _CMYK = 2, 5
"""Values of PlanarConfiguration and PhotometricInterpretation (TIFF 6.0)."""
_MIN_TILE = 16


class TruncatedError(ValueError):
    """The file ends before its picture does."""


@dataclass(frozen=True)
class JpegFrame:
    """What the segments of a JPEG say.

    Attributes:
        width, height: size as stored, in pixels.
        components: 1 (grey), 3 (colour) or 4 (CMYK).
        scans: number of scans. A decoder keeps the coefficients of all pixels where there are several.
    """

    width: int
    height: int
    components: int
    scans: int


@dataclass(frozen=True)
class TiffLayout:
    """What the first directory of a TIFF says.

    Attributes:
        width, height: size as stored, in pixels.
        samples: values per pixel.
        bits: most bits per value.
        part_pixels: pixels of a strip or tile, which is decoded as a whole.
        in_planes: whether the channels lie one after the other.
        is_cmyk: whether the colours are CMYK.
        extra: meanings of the samples beyond the colours: 1 alpha with premultiplied colours, 2 alpha.
        orientation: how the pixels have to be turned, as in EXIF.
        profile: ICC profile.
    """

    width: int
    height: int
    samples: int
    bits: int
    part_pixels: int
    in_planes: bool
    is_cmyk: bool
    extra: frozenset[int]
    orientation: int
    profile: bytes | None


def read_jpeg_frame(data: bytes) -> JpegFrame:
    """Walk through the segments of a JPEG up to its end (ITU-T T.81, B.1).

    Raises:
        TruncatedError: there is no end.
        SyntaxError: there is no frame, or more scans, segments or EXIF data than any camera writes.
    """
    at, scans, exif_bytes, frame = 2, 0, 0, None
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _JPEG_MARKER.search(data, at)
        if marker is None:
            raise TruncatedError
        kind, at = data[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        if kind in _WITHOUT_BODY:
            continue
        if kind == 0xDA:
            scans += 1
        elif kind in _JPEG_FRAMES and frame is None:
            _, height, width, components = struct.unpack_from(">BHHB", data, at + 2)
            frame = width, height, components
        elif kind == 0xE1 and data.startswith(b"Exif", at + 2):
            exif_bytes += int.from_bytes(data[at : at + 2])
        at += int.from_bytes(data[at : at + 2])
    else:
        raise SyntaxError("too many segments")
    if frame is None or not scans or scans > MAX_JPEG_SCANS or exif_bytes > MAX_EXIF_BYTES:
        raise SyntaxError(f"{frame} with {scans} scans and {exif_bytes} bytes of EXIF data")
    return JpegFrame(*frame, scans)


def check_png(file: BinaryIO) -> tuple[bytes, int]:
    """Verify the checksums of all chunks (ISO/IEC 15948, 5.3): Pillow decodes without a look at them.

    Returns:
        The body of the eXIf chunk, empty if there is none, and the bits per channel.

    Raises:
        TruncatedError: there is no IEND chunk.
        SyntaxError: a checksum is wrong, or there are more chunks or colour profiles than any encoder writes.
    """
    file.seek(_PNG_START)
    profiles, depth, exif = 0, 0, b""
    for _ in range(MAX_PNG_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise TruncatedError
        body, checksum = file.read(int.from_bytes(head[:4])), file.read(4)
        if len(checksum) < 4:
            raise TruncatedError
        if zlib.crc32(body, zlib.crc32(head[4:])) != int.from_bytes(checksum):
            raise SyntaxError(f"the checksum of a {head[4:]!r} chunk is wrong")
        if head[4:] == b"IHDR" and len(body) > _PNG_DEPTH_AT:
            depth = body[_PNG_DEPTH_AT]
        elif head[4:] == b"eXIf":
            exif = body
        elif head[4:] == b"iCCP":
            profiles += 1
        elif head[4:] == b"IEND":
            break
    else:
        raise SyntaxError("too many chunks")
    if profiles > 1:
        raise SyntaxError(f"{profiles} colour profiles")
    return exif, depth


def read_tiff_layout(data: bytes) -> TiffLayout:
    """Read the first directory of a TIFF or BigTIFF.

    Raises:
        SyntaxError: a value is missing or makes no sense, or there are more values than bytes.
    """
    tags = _read_tiff_tags(data)

    def find(tag: int, default: int | None = None) -> int:
        value = tags.get(tag, default)
        if not isinstance(value, int) or value < 0:
            raise SyntaxError(f"tag {tag} is {value!r}")
        return value

    width, height = find(IMAGEWIDTH), find(IMAGELENGTH)
    if TILEWIDTH in tags:
        part_width, part_height = find(TILEWIDTH), find(TILELENGTH)
        if min(part_width, part_height) < _MIN_TILE:
            raise SyntaxError(f"tiles of {part_width} x {part_height} pixels")
    else:
        part_width, part_height = width, min(height, find(ROWSPERSTRIP, height))
    profile, extra, bits = tags.get(ICCPROFILE), tags.get(EXTRASAMPLES, ()), tags.get(BITSPERSAMPLE, (1,))
    return TiffLayout(
        width,
        height,
        find(SAMPLESPERPIXEL, 1),
        max(bits),
        part_width * part_height,
        tags.get(PLANAR_CONFIGURATION) == _PLANES,
        tags.get(PHOTOMETRIC_INTERPRETATION) == _CMYK,
        frozenset(extra),
        find(Base.Orientation, 1),
        profile if isinstance(profile, bytes) else None,
    )


def _read_tiff_tags(data: bytes) -> ImageFileDirectory_v2:
    big = 43 in data[2:4]
    tags = ImageFileDirectory_v2(data[: 16 if big else 8])
    order: Literal["<", ">"] = "<" if data.startswith(b"II") else ">"
    wide = "u8" if big else "u4"
    counter = struct.Struct(order + ("Q" if big else "H"))
    if tags.next > len(data):
        raise SyntaxError(f"a directory at byte {tags.next}")
    (count,) = counter.unpack_from(data, tags.next)
    if count > MAX_TIFF_TAGS:
        raise SyntaxError(f"{count} tags")
    entry: Any = np.dtype([("tag", "u2"), ("type", "u2"), ("values", wide), ("offset", wide)]).newbyteorder(order)
    entries = np.frombuffer(data, entry, count, tags.next + counter.size)
    if entries["values"].astype(np.float64).sum() > len(data):  # Pillow reads them all into memory
        raise SyntaxError("more values than bytes")
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags
