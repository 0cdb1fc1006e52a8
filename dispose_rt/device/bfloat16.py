"""bfloat16 on a host whose numpy has none: such tensors are float32 there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest, ties to even; returns the bits. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # wraps for NaN alone
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Turn bits of bfloat16 into the same numbers in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
