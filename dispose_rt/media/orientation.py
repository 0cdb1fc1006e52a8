"""Turning pixels upright: EXIF orientations of pictures and display matrices of videos."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..types import U8

EXIF_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE_BYTES = 8
_RIFF_HEADER_BYTES = 12


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become upright ones: transpose first, then flip rows and columns of the result."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, image: U8) -> U8:
        """Return the upright image, C-contiguous; a transposed one has its height and width exchanged."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        if self.flip_rows:
            image = image[::-1]
        if self.flip_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


UPRIGHT = Orientation()

EXIF_ORIENTATIONS: Mapping[int, Orientation] = MappingProxyType(
    {
        1: UPRIGHT,
        2: Orientation(flip_columns=True),
        3: Orientation(flip_rows=True, flip_columns=True),
        4: Orientation(flip_rows=True),
        5: Orientation(transpose=True),
        6: Orientation(transpose=True, flip_columns=True),
        7: Orientation(transpose=True, flip_rows=True, flip_columns=True),
        8: Orientation(transpose=True, flip_rows=True),
    }
)
"""By the value of EXIF's Orientation tag (EXIF 2.32, tag 0x0112)."""


def orientation_of_matrix(matrix: bytes) -> Orientation:
    """Read a video's display matrix (ISO/IEC 14496-12, 6.2.2).

    Args:
        matrix: nine native int32 values a, b, u, c, d, v, x, y, w. A stored point (p, q) is shown at
            (a p + c q + x, b p + d q + y).

    Returns:
        The nearest orientation of quarter turns and mirrors. A slanted matrix is left alone.
    """
    if len(matrix) < 36:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    if a and d and not (b or c):
        return Orientation(False, flip_rows=d < 0, flip_columns=a < 0)
    if b and c and not (a or d):
        return Orientation(True, flip_rows=b < 0, flip_columns=c < 0)
    return UPRIGHT


def exif_orientation(data: bytes) -> Orientation:
    """Read the orientation from the EXIF block of a whole PNG or WebP file; upright where there is none."""
    for exif in (_png_exif(data), _webp_exif(data)):
        if exif is not None:
            return EXIF_ORIENTATIONS.get(_orientation_value(exif), UPRIGHT)
    return UPRIGHT


def _png_exif(data: bytes) -> bytes | None:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    at = _PNG_SIGNATURE_BYTES
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += length + 12  # length, type and checksum
    return None


def _webp_exif(data: bytes) -> bytes | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    at = _RIFF_HEADER_BYTES
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    return None


def _orientation_value(exif: bytes) -> int:
    """Find the Orientation tag in the first directory of a TIFF structure; 1 is upright, and the answer to damage."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, directory + 2 + 12 * entry)
            if tag == EXIF_ORIENTATION_TAG:
                return int(value)
    except struct.error:
        return 1
    return 1
