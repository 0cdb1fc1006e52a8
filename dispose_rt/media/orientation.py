"""Turns the pixels of videos upright, by their display matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ..types import U8


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
